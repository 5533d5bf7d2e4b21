"""Runs at the start of every interpreter of an environment: imports write no bytecode into it.

    build -> site-packages/_flashpool_environment.py (this file) <- a .pth file beside it

Calls share an environment, and its build compiles everything that can be compiled. If an import
added bytecode later, a disk that is full for a moment could cut it (CPython before 3.12.8 and
3.13.1 publishes it nevertheless), and every later import of that module would fail. Flags that
programs can see stay unchanged, and so do files that imports write elsewhere, for example under
`sys.pycache_prefix`. Uses little of the standard library, because it runs at each start of an
interpreter.
"""

from __future__ import annotations

import os
from _frozen_importlib_external import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _keep_out_bytecode(root: str) -> None:
    folders = (f"{root}/", f"{os.path.realpath(root)}/")
    loader: Any = SourceFileLoader
    write = loader._cache_bytecode

    def _cache_bytecode(self: Any, source_path: str, bytecode_path: str, data: Any) -> None:
        if not os.path.abspath(bytecode_path).startswith(folders):
            write(self, source_path, bytecode_path, data)

    loader._cache_bytecode = _cache_bytecode


# This file is in lib/python3.x/site-packages of the environment.
_keep_out_bytecode(os.path.abspath(f"{__file__}/../../../.."))
