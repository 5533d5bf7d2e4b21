"""Runs at the start of every interpreter of an environment: imports write no bytecode into it.

    build -> site-packages/_flashpool_environment.py (this file) <- a .pth file beside it

Calls share an environment, and its build compiles all that can be compiled. What an import
adds later may be cut by a disk that is full for a moment (CPython before 3.12.8 and 3.13.1
publishes it all the same), and then every later import of that module fails. The flags that
programs can see stay as they are, and so does what imports write anywhere else, under
`sys.pycache_prefix` for example. Standard library only, and as little of it as may be:
every start of an interpreter pays for it.
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


# lib/python3.x/site-packages lies between the environment and this file.
_keep_out_bytecode(os.path.abspath(f"{__file__}/../../../.."))
