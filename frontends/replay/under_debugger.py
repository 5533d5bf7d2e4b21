"""``python under_debugger.py CHILD PACKAGES BODY``: run a kept request in this process, under pdb.

The interpreter of the request's environment, which contains no flashpool, runs this file. It
imports only the standard library, and the worker's modules from the folder CHILD. PACKAGES are
folders, joined by ``:``, with packages that these modules need and the environment may lack. The
debugger stops where the call raises; ``q`` quits.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any


def main() -> int:
    """Run the call; return the exit status, which is 1 if the call failed."""
    child, packages, body = sys.argv[1:4]
    package: Any = type(sys)("_flashpool")
    package.__path__ = [child]
    sys.modules["_flashpool"] = package
    # At the end of the path, so that they never shadow packages of the environment.
    sys.path += [os.path.dirname(folder) for folder in packages.split(":")]
    from _flashpool.running import invoke
    from _flashpool.serialization import flash, live_module

    live_module.prepare()
    with open(body, "rb") as file:
        content = file.read()
    try:
        call = flash.load_call(content)
        value = invoke.run(call.function, call.args, call.kwargs, None)
    except BaseException:  # noqa: BLE001 - the debugger shows it
        import pdb  # noqa: T100 - the purpose of this program

        traceback.print_exc()
        pdb.post_mortem(sys.exc_info()[2])
        return 1
    sys.stdout.write(f"It returned {value!r}\n")
    return 0


sys.exit(main())
