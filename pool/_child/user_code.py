"""Turns the source text of a request into live functions, classes and modules.

    modules {path: source} -> Finder on sys.meta_path     importable, nothing on disk
    code                   -> run_source -> a fresh __main__ -> find_function
                                                             -> build_class -> build_instance

Every piece of source is its modules' ``__loader__`` too, and hands its text out through
``get_source``: that is how `linecache`, and so tracebacks and ``inspect.getsource``, finds
the lines of files that do not exist. It costs nothing until somebody asks, where filling
``linecache.cache`` would cost its import. (`linecache` asks no loader about names in angle
brackets, hence ``flash:NAME``.)
"""

from __future__ import annotations

import sys

from .wire import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any
else:
    ModuleSpec = type(sys.__spec__)
    ModuleType = type(sys)

MAX_MODULES = 1000
MAX_MODULE_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 20

#: Top-level names that are not the standard library's, and yet not for users to replace:
#: what the interpreter runs at its start, and what carries the result home.
RESERVED = frozenset(
    {"__main__", "sitecustomize", "usercustomize", "cloudpickle", "tblib", "_flashpool"}
)

#: How often a name was used in this process.
_uses: dict[str, int] = {}


class Source:
    """One file of source text, and the loader of the module made of it."""

    __slots__ = ("filename", "is_package", "text")

    def __init__(self, text: str, filename: str, *, is_package: bool = False) -> None:
        self.text = text
        self.filename = filename
        self.is_package = is_package

    def get_source(self, _name: str) -> str:
        """The text, for `linecache` (PEP 302)."""
        return self.text

    def create_module(self, _spec: ModuleSpec) -> None:
        """Let the import system make an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the text in the module."""
        exec(self.compile(), module.__dict__)

    def compile(self, flags: int = 0) -> CodeType:
        """Compile, free of this file's own ``__future__`` imports."""
        code: CodeType = compile(self.text, self.filename, "exec", flags, dont_inherit=True)
        return code


# -- The code of a request --------------------------------------------------------------


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


def _filename(name: str) -> str:
    """Not used before in this process: a traceback must not show another call's lines."""
    name = f"flash:{name if name.isidentifier() else 'code'}"
    number = _uses[name] = _uses.get(name, 0) + 1
    return name if number == 1 else f"{name}#{number}"


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


# -- The modules beside it --------------------------------------------------------------


class Finder:
    """Imports the modules of a request from memory, ahead of installed packages."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol (``sys.meta_path``)."""
        source = self.sources.get(name)
        if source is None:
            return None
        spec = ModuleSpec(
            name,
            source,  # type: ignore[arg-type]
            origin=source.filename,
            is_package=source.is_package,
        )
        spec.has_location = True
        if source.is_package:
            spec.submodule_search_locations = _search_path(name, source, path)
        return spec


def _search_path(name: str, source: Source, path: Sequence[str] | None) -> list[str]:
    locations = [source.filename.rpartition("/")[0]]
    if not source.text:
        # A folder without code of its own may be a part of an installed namespace
        # package (google, azure): keep the other parts importable.
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is None:
            locations += spec.submodule_search_locations or []
    return locations


def install_modules(modules: Mapping[str, str]) -> Finder:
    """Make modules importable in this process until it ends, in place of any before.

    Raises:
        BadRequest: a path is not that of an importable module, or there is too much.
    """
    finder = Finder(_sources(modules))
    sys.meta_path[:] = [finder, *(f for f in sys.meta_path if not isinstance(f, Finder))]
    _forget({name.partition(".")[0] for name in finder.sources})
    return finder


def _forget(packages: set[str]) -> None:
    """Drop what the zygote, or the call before, imported under these names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _sources(modules: Mapping[str, str]) -> dict[str, Source]:
    if len(modules) > MAX_MODULES:
        raise BadRequest(f"modules: {len(modules)} files, more than {MAX_MODULES}")
    sources: dict[str, Source] = {}
    size = 0
    for path, text in modules.items():
        size += check_text(f"modules[{path!r}]", text)
        _add(sources, path, text)
    if size > MAX_MODULE_BYTES:
        raise BadRequest(f"modules: {size} bytes of source, more than {MAX_MODULE_BYTES}")
    _add_packages(sources)
    return sources


def _add(sources: dict[str, Source], path: str, text: str) -> None:
    parts = _module_parts(path)
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    known = sources.get(name)
    # pkg/__init__.py wins over pkg.py, as it does on disk.
    if known is None or not known.is_package:
        sources[name] = Source(text, f"flash:{path}", is_package=is_package)


def _add_packages(sources: dict[str, Source]) -> None:
    """A folder without an ``__init__.py`` becomes an empty package."""
    for name in tuple(sources):
        parent = name.rpartition(".")[0]
        while parent and parent not in sources:
            filename = f"flash:{parent.replace('.', '/')}/__init__.py"
            sources[parent] = Source("", filename, is_package=True)
            parent = parent.rpartition(".")[0]


def _module_parts(path: str) -> list[str]:
    parts = path[:-3].split("/")
    if not path.endswith(".py") or not all(part.isidentifier() for part in parts):
        raise BadRequest(
            f"modules: {path[:200]!r} is not the path of a module; expected names joined by '/' "
            "and ending in '.py', relative to the folder of the main file"
        )
    if len(parts) > MAX_DEPTH:
        raise BadRequest(f"modules: {path[:200]!r} is more than {MAX_DEPTH} folders deep")
    if parts == ["__init__"]:
        raise BadRequest("modules: '__init__.py' is in no package")
    if parts[0] in sys.stdlib_module_names or parts[0] in RESERVED:
        raise BadRequest(f"modules: {path!r} would replace the module {parts[0]!r}; rename it")
    return parts


def check_text(field: str, text: str) -> int:
    """Whether it can be source at all; its size in bytes.

    Raises:
        BadRequest: it has characters that no Python source may have.
    """
    if "\0" in text:
        raise BadRequest(f"{field}: has a NUL character, at {text.index(chr(0))}")
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"{field}: has half a surrogate pair, at {error.start}") from None
