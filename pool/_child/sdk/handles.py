"""The handles of SDK 2.0: ``@app.queue`` replaces a function by a handle that holds the function.

    module, name -> FunctionHandle -> its function       to be called
                                   -> NeedsResident      if it has a start hook (``@f.init``)

The SDK is never imported here. A handle is recognised by its class, which is loaded once the module
that created the handle has run.
"""

from __future__ import annotations

import os
import sys

from ..wire import BadRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

_SDK = "runpod"
#: The SDK's module of handles, which code that creates a handle imports.
MODULE = "runpod.apps.handles"
_MOUNTS = "RUNPOD_MOUNTS"


class NeedsResident(Exception):
    """The function has a start hook, so it must run in a resident in which the hook has run."""


class NeedsProcess(Exception):
    """The function has no start hook, although it was sent to a resident."""


def imports_sdk(code: CodeType) -> bool:
    """Return whether a module's code imports the SDK at its top level."""
    return any(name == _SDK or name.startswith(f"{_SDK}.") for name in code.co_names)


def bind_volumes() -> None:
    """Tell the SDK where volumes are mounted, before user code asks."""
    mounts = os.environ.get(_MOUNTS)
    if not mounts:
        return
    import json
    from importlib import import_module

    volumes = import_module("runpod.apps.volume")
    volumes._configure_mounts(json.loads(mounts))


def function_of(module: ModuleType, name: str, found: Any) -> Any:
    """Return the function of a handle; for an object without a handle, the object itself.

    Raises:
        NeedsResident: the function has a start hook.
        BadRequest: the name is that of an API.
    """
    handle = handle_of(module, name, found)
    if handle is None:
        return found
    if getattr(handle, "_init_fn", None) is not None:
        raise NeedsResident(f"{name!r} has a start hook")
    return handle._fn


def handle_of(module: ModuleType, name: str, found: Any) -> Any:
    """Return the handle of the function of that name; None if it has no handle.

    Raises:
        BadRequest: the name is that of an API.
    """
    kinds = sys.modules.get(MODULE)
    if kinds is None:
        return None
    if isinstance(found, kinds.ApiHandle):
        raise BadRequest(
            f"function_name: {name!r} is an @app.api, which is called by its routes, not as a function"
        )
    if isinstance(found, kinds.FunctionHandle):
        return found
    if found is not None:
        return None
    # The name of the handle and the function's own name may differ.
    handles = handles_in(module, kinds.FunctionHandle)
    return next((one for one in handles if one.__name__ == name), None)


def handles_in(module: ModuleType, kind: type[Any]) -> list[Any]:
    """Return the handles of that kind to which names of a module refer."""
    return [one for one in vars(module).values() if isinstance(one, kind)]
