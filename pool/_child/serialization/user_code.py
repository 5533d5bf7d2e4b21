"""Turns the source text of a request into live functions, classes and instances.

code -> run_source -> a fresh __main__ -> find_function
                                       -> build_class -> build_instance -> find_method
"""

from __future__ import annotations

import sys

from ..wire import BadRequest
from .source_loader import ModuleSpec, ModuleType, Source
from .source_loader import compile_ahead as compile_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import CodeType
    from typing import Any

#: How often a name was used in this process.
_uses: dict[str, int] = {}


def run_source(code: str, name: str) -> ModuleType:
    """Run source in a fresh ``__main__`` and return that module.

    It is the real ``__main__`` so that dataclasses find it, and pickle by value works.
    """
    source = Source(code, _filename(name))
    try:
        return _run(source, source.compile())
    except NameError as error:
        code_object = _without_annotations(source, error)
        if code_object is None:
            raise
    return _run(source, code_object)


def compile_ahead(code: str, name: str) -> CodeType | None:
    """Have the first run of this source, in any worker forked from here, find it compiled."""
    return compile_source(code, _first_filename(name))


def forget() -> None:
    """Be as if nothing had been run yet."""
    _uses.clear()


def _filename(name: str) -> str:
    """Not used before in this process: a traceback must not show another call's lines."""
    name = _first_filename(name)
    number = _uses[name] = _uses.get(name, 0) + 1
    return name if number == 1 else f"{name}#{number}"


def _first_filename(name: str) -> str:
    return f"flash:{name if name.isidentifier() else 'code'}"


def _run(source: Source, code: CodeType) -> ModuleType:
    module = ModuleType("__main__")
    # A spec named __main__ also keeps multiprocessing's children from running __file__.
    spec = ModuleSpec("__main__", source, origin=source.filename)  # type: ignore[arg-type]
    module.__dict__.update(__file__=source.filename, __loader__=source, __spec__=spec)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)
    return module


def _without_annotations(source: Source, error: NameError) -> CodeType | None:
    """The same code with annotations left unevaluated, when it was one that failed.

    A function travels without its module: ``def f(item: Item)`` names what only the
    client has, and means nothing by it here. A default value does mean something, and
    keeps its error.
    """
    if error.name not in _annotation_names(source.text, _line_of(error, source.filename)):
        return None
    import __future__

    return source.compile(__future__.annotations.compiler_flag)


def _line_of(error: BaseException, filename: str) -> int | None:
    """The line that raised, when it was in the file itself and not in what it calls."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or traceback.tb_frame.f_code.co_filename != filename:
        return None
    return traceback.tb_lineno


def _annotation_names(text: str, line: int | None) -> set[str]:
    """Names in those annotations that are evaluated when ``line`` is."""
    import ast

    names: set[str] = set()
    for node in ast.walk(ast.parse(text)) if line is not None else ():
        for annotation in _annotations(node):
            # A signature over many lines is evaluated at the line of its ``def``, or of
            # the annotation: it depends on the version.
            first = min(annotation.lineno, getattr(node, "lineno", annotation.lineno))
            if first <= line <= (annotation.end_lineno or line):  # type: ignore[operator]
                names |= {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
    return names


def _annotations(node: Any) -> Iterable[Any]:
    import ast

    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        a = node.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        found = [argument.annotation for argument in arguments if argument is not None]
        return [annotation for annotation in (*found, node.returns) if annotation is not None]
    return [node.annotation] if isinstance(node, ast.AnnAssign) else []


def find_function(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function of that name.

    Raises:
        BadRequest: there is none; the message names those that are there.
    """
    function = module.__dict__.get(name)
    if callable(function):
        return function  # type: ignore[no-any-return]
    if name in module.__dict__:
        raise BadRequest(f"function_name: {name!r} is a {type(function).__name__}, not a function")
    raise BadRequest(f"function_name: function_code defines no {name!r}; {_defined(module)}")


def build_class(code: str, name: str) -> type[Any]:
    """Run the source of a class and return the class.

    Raises:
        BadRequest: the source defines no class of that name.
    """
    module = run_source(code, name)
    found = module.__dict__.get(name)
    if isinstance(found, type):
        return found
    raise BadRequest(f"class_name: class_code defines no class {name!r}; {_defined(module)}")


def build_instance(cls: type[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An instance; what its constructor raises is the user's own error."""
    return cls(*args, **kwargs)


def find_method(instance: object, name: str) -> Callable[..., Any]:
    """The bound method of that name.

    Raises:
        BadRequest: there is none; the message names the public ones.
    """
    method = getattr(instance, name, None)
    if callable(method):
        return method  # type: ignore[no-any-return]
    there = [n for n in dir(type(instance)) if not n.startswith("_")]
    what = type(instance).__name__
    raise BadRequest(f"method_name: {what} has no method {name!r}; it has {_listed(there)}")


def _defined(module: ModuleType) -> str:
    there = [
        name
        for name, value in module.__dict__.items()
        if callable(value) and getattr(value, "__module__", None) == "__main__"
    ]
    return f"it defines {_listed(there)}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20]) or "nothing that can be called"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
