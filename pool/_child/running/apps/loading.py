"""Loads an ASGI application, or a handler of jobs, as a load message describes it.

    directory                        first on ``sys.path``, and the working directory
    file | module, attribute    -->  the application
    generated                        remove its route ``/execute``

`flash build` names generated files after their resource, whose name may be invalid for an import,
so they are loaded by path. A generated application has a route ``POST /execute``, which runs any
code sent to it. That route is removed, also from ``/openapi.json``.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys

from ... import app_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .exchange import Asgi

#: The route that is removed from generated applications.
_EXECUTE = "/execute"


class NotLoaded(Exception):
    """The application or handler does not exist; the message says what exists instead."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Create the loop that uvicorn would use: uvloop's if the environment has it."""
    try:
        # The environment's uvloop, not a module of the app: its directory is not on the path yet.
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()  # type: ignore[no-any-return]


def load(what: dict[str, Any]) -> Asgi:
    """Load the application; raise whatever the user's modules raise."""
    app, _ = _find(what, "ASGI application")
    if what["generated"]:
        without_execute(app)
    return app  # type: ignore[no-any-return]


def load_handler(what: dict[str, Any]) -> tuple[Callable[..., Any], ModuleType]:
    """Load a handler of jobs, and its module; raise whatever the user's modules raise."""
    return _find(what, "handler of jobs")


def _find(what: dict[str, Any], kind: str) -> tuple[Any, ModuleType]:
    directory = what["directory"]
    os.chdir(directory)
    app_directory.reveal(directory)
    module = _module(directory, what["file"], what["module"])
    name = what["attribute"]
    app = module
    for part in name.split("."):
        app = getattr(app, part, None)
        if app is None:
            raise NotLoaded(f"{what['file'] or what['module']} has no {name!r}")
    if not callable(app):
        raise NotLoaded(
            f"{name!r} of {what['file'] or what['module']} is no {kind}, but {app!r:.100}"
        )
    return app, module


def _module(directory: str, file: str, name: str) -> Any:
    if not file:
        return importlib.import_module(name)
    path = os.path.join(directory, file)
    if not os.path.isfile(path):
        there = sorted(one for one in os.listdir(directory) if one.startswith("handler_"))
        raise NotLoaded(
            f"there is no {file} in {directory}; of handlers there is: {', '.join(there) or 'none'}"
        )
    name = file.removesuffix(".py")
    loaded = sys.modules.get(name)
    if getattr(loaded, "__file__", None) == path:
        return loaded  # imported before
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def importable_elsewhere(names: list[str], directory: str) -> list[str]:
    """Return the modules that do not belong to the app: a zygote may preload them."""
    within = directory.rstrip("/") + "/"
    found = []
    for name in names:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if not str(getattr(spec, "origin", None)).startswith(within):
            found.append(name)
    return found


def without_execute(app: Any) -> None:
    """Remove the route; mounted applications keep theirs, which have longer paths."""
    routes = getattr(getattr(app, "router", None), "routes", None)
    if isinstance(routes, list):
        routes[:] = [one for one in routes if getattr(one, "path", None) != _EXECUTE]
