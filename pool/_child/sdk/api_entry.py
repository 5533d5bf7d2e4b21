"""The module of an app that is an API of SDK 2.0, live or deployed; ``app`` is the application.

FLASHPOOL_SDK_ENTRY  {"module", "resource", "paths"}  -->  the user's module  -->  its ApiHandle
                                                      -->  app
"""

from __future__ import annotations

import sys

from . import api_routes, handles
from .entry import NotServed, load_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def load() -> Any:
    """Return the application of the resource; raise whatever user code raises."""
    module, resource = load_module()
    kinds = sys.modules.get(handles.MODULE)
    found = [] if kinds is None else handles.handles_in(module, kinds.ApiHandle)
    for handle in found:
        if handle.spec.name == resource:
            return api_routes.application(handle)
    there = ", ".join(sorted(one.spec.name for one in found)) or "none"
    raise NotServed(f"{module.__name__} has no @app.api of the name {resource!r}; it has: {there}")


def __getattr__(name: str) -> Any:
    """Load ``app`` at the first access: a process that only imports this module is not a worker."""
    if name == "app":
        return load()
    raise AttributeError(name)
