"""Turns the source text of a request into functions, classes and instances.

code -> run_source -> a new __flash_live__   -> find_function
                                             -> build_class -> build_instance -> find_method

A module that itself imports the SDK becomes `__runpod_live__`, and its functions are in handles
(see `sdk`).
"""

from __future__ import annotations

import sys

from ..sdk import handles
from ..wire import BadRequest
from .live_module import NAME, SDK_NAME, asks_for_its_file, write_source
from .source_loader import ModuleSpec, ModuleType, Source, plain
from .source_loader import compile_ahead as compile_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import CodeType
    from typing import Any

#: Code flags of coroutines and async generators.
_ASYNC = 0x80 | 0x200

#: How often each name was used in this process.
_uses: dict[str, int] = {}


def run_source(code: str, name: str) -> ModuleType:
    """Run source in a new module, and return that module.

    The module is in ``sys.modules``, so that dataclasses and pickle find it.
    """
    filename = _filename(name)
    if (compiled := plain.get((filename, code))) is not None:
        # Do not search the text: a worker pays for each function and page that it accesses.
        return _run(Source(code, filename), compiled, NAME)
    module_name = NAME
    if "runpod" in code and handles.imports_sdk(Source(code, filename).compile()):
        module_name = SDK_NAME
        handles.bind_volumes()
    if asks_for_its_file(code):
        filename = write_source(code, module_name)
    source = Source(code, filename)
    return _run(source, source.compile(), module_name)


def compile_ahead(code: str, name: str) -> CodeType | None:
    """Compile a source, so that workers forked later find it compiled."""
    is_plain = "runpod" not in code and not asks_for_its_file(code)
    return compile_source(code, _first_filename(name), is_plain=is_plain)


def forget() -> None:
    """Forget the names used so far, as if no code had been run."""
    _uses.clear()


def _filename(name: str) -> str:
    """Return a file name that is new in this process, or tracebacks might show old source lines."""
    name = _first_filename(name)
    number = _uses[name] = _uses.get(name, 0) + 1
    return name if number == 1 else f"{name}#{number}"


def _first_filename(name: str) -> str:
    return f"flash:{name if name.isidentifier() else 'code'}"


def _run(source: Source, code: CodeType, name: str) -> ModuleType:
    module = ModuleType(name)
    spec = ModuleSpec(name, source, origin=source.filename)  # type: ignore[arg-type]
    module.__dict__.update(__file__=source.filename, __loader__=source, __spec__=spec)
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module


def find_function(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return the function of that name.

    Raises:
        BadRequest: it does not exist; the message lists those that do.
    """
    function = module.__dict__.get(name)
    if module.__name__ == SDK_NAME:
        function = handles.function_of(module, name, function)
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
    """Create an instance; exceptions of the constructor are the user's own."""
    return cls(*args, **kwargs)


async def made_on_loop(cls: type[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Create an instance; its constructor runs on the loop on which its methods will run."""
    return build_instance(cls, args, kwargs)


def async_methods(cls: type[Any]) -> list[str]:
    """Return the names of methods that are ``async def``: their calls may overlap."""
    found = []
    for name in dir(cls):
        method = getattr(cls, name, None)
        code = getattr(getattr(method, "__func__", method), "__code__", None)
        if getattr(code, "co_flags", 0) & _ASYNC:
            found.append(name)
    return found


def call_on_loop(
    cls: type[Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> Callable[..., Any]:
    """Return a function that creates an instance and calls its method, both on the same loop."""

    def call(*method_args: Any, **method_kwargs: Any) -> Any:
        import asyncio

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        instance = loop.run_until_complete(made_on_loop(cls, args, kwargs))
        value = find_method(instance, name)(*method_args, **method_kwargs)
        if hasattr(type(value), "__await__"):
            return loop.create_task(_awaited(value))
        if hasattr(type(value), "__anext__"):
            return loop.create_task(_handed_on(value))
        return value

    return call


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


async def _handed_on(value: Any) -> Any:
    return value


def find_method(instance: object, name: str) -> Callable[..., Any]:
    """Return the bound method of that name.

    Raises:
        BadRequest: it does not exist; the message lists the public methods.
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
        if callable(value) and getattr(value, "__module__", None) in (NAME, SDK_NAME)
    ]
    return f"it defines {_listed(there)}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20]) or "nothing that can be called"
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown
