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
    """The function has a start hook: it has to run where that has run, and stays for later calls."""


class NeedsProcess(Exception):
    """The function has no start hook, though it was taken for one that has: it does not stay."""


def imports_sdk(code: CodeType) -> bool:
    """Whether the code of a module imports the SDK itself, and not only in a function."""
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
    """What to call for what the module has under the name: a handle's function, or itself.

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
    """The handle of the function of that name; None: it has none.

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
    """The handles of that kind that a module has names for."""
    return [one for one in vars(module).values() if isinstance(one, kind)]
