"""Loaded as the module of an app: what the platform's resource of SDK 2.0 is, as an application.

    FLASHPOOL_SDK_ENTRY  {"module", "resource", "paths"}  -->  the user's module  -->  its ApiHandle
                                                          -->  app

It is read and taken away before user code runs. ``paths`` go ahead of the app's own folder.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from . import api_routes, handles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The variable that says what to load.
VARIABLE = "FLASHPOOL_SDK_ENTRY"


class NotServed(Exception):
    """The module has no such API; the message says which it has."""


def load() -> Any:
    """The application of the resource. Raises whatever user code raises."""
    told = json.loads(os.environ.pop(VARIABLE))
    sys.path[:0] = told["paths"]
    handles.bind_volumes()
    module = import_module(told["module"])
    return application_of(module, told["resource"])


def application_of(module: Any, resource: str) -> Any:
    """The application of an API of the module, by the resource's name.

    Raises:
        NotServed: there is none.
    """
    kinds = sys.modules.get("runpod.apps.handles")
    found = [] if kinds is None else _apis(module, kinds.ApiHandle)
    for handle in found:
        if handle.spec.name == resource:
            return api_routes.application(handle)
    there = ", ".join(sorted(one.spec.name for one in found)) or "none"
    raise NotServed(f"{module.__name__} has no @app.api of the name {resource!r}; it has: {there}")


def _apis(module: Any, kind: type[Any]) -> list[Any]:
    return [one for one in vars(module).values() if isinstance(one, kind)]


def __getattr__(name: str) -> Any:
    """Load it when it is asked for: a process that only imports this is nobody's worker."""
    if name == "app":
        return load()
    raise AttributeError(name)
