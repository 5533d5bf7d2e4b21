"""The handles of SDK 2.0: ``@app.queue`` leaves one in the module, with the function inside.

    module, name -> FunctionHandle -> its function       called as it is
                                   -> NeedsResident      it has a start hook (``@f.init``)

The SDK is never imported here. A handle is known by its class, and that is there once the module
that made the handle ran.
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
#: The SDK's module of handles; imported by whatever makes one.
MODULE = "runpod.apps.handles"
_MOUNTS = "RUNPOD_MOUNTS"


class NeedsResident(Exception):
    """The function has a start hook: it must run where the hook has run, and stays for
    later calls.
    """


class NeedsProcess(Exception):
    """The function has no start hook, although it was sent to a worker that stays."""


def imports_sdk(code: CodeType) -> bool:
    """Return whether the top level of a module's code imports the SDK, and not only a function."""
    return any(name == _SDK or name.startswith(f"{_SDK}.") for name in code.co_names)


def bind_volumes() -> None:
    """Let volumes know where they are mounted, before the user's code asks."""
    mounts = os.environ.get(_MOUNTS)
    if not mounts:
        return
    import json
    from importlib import import_module

    volumes = import_module("runpod.apps.volume")
    volumes._configure_mounts(json.loads(mounts))


def function_of(module: ModuleType, name: str, found: Any) -> Any:
    """Return the callable that a module has under a name: a handle's function, or the object
    itself.

    Raises:
        NeedsResident: it cannot run here.
        BadRequest: it is no function.
    """
    handle = handle_of(module, name, found)
    if handle is None:
        return found
    if getattr(handle, "_init_fn", None) is not None:
        raise NeedsResident(f"{name!r} has a start hook")
    return handle._fn


def handle_of(module: ModuleType, name: str, found: Any) -> Any:
    """Return the handle of the function of that name; None if it has none.

    Raises:
        BadRequest: it is the handle of an API.
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
    # The decorated name and the function's own may differ.
    handles = handles_in(module, kinds.FunctionHandle)
    return next((one for one in handles if one.__name__ == name), None)


def handles_in(module: ModuleType, kind: type[Any]) -> list[Any]:
    """Return the handles of that kind to which names of a module refer."""
    return [one for one in vars(module).values() if isinstance(one, kind)]
