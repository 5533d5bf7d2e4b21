"""Loads a deployed or live resource of SDK 2.0 in a worker, as an environment variable names it."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from . import handles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The variable that says what to load. It is removed before user code runs.
VARIABLE = "FLASHPOOL_SDK_ENTRY"


class NotServed(Exception):
    """The module has no such resource; the message lists those it has."""


def load_module() -> tuple[Any, str]:
    """Return the user's module and the name of the resource; raise whatever user code raises."""
    told = json.loads(os.environ.pop(VARIABLE))
    # Before the app's own folder.
    sys.path[:0] = told["paths"]
    handles.bind_volumes()
    return import_module(told["module"]), told["resource"]
