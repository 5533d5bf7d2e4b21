"""``python -I -S boot.py CONTROL_FD SUPERVISOR_PID FILES``: become a zygote.

This folder is made importable as the package ``_flashpool`` without going on
``sys.path``, where a file of ours could shadow a module of the user's.
"""

import os
import sys

package = type(sys)("_flashpool")
package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules["_flashpool"] = package

from _flashpool.fork_server import zygote

zygote.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
