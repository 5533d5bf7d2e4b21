"""``python -I -S boot.py CONTROL_FD SUPERVISOR_PID DESCRIPTORS FILES STACKS_FD``: become a zygote.

``DESCRIPTORS`` is the soft limit of open files to have; 0: the one that it finds. ``FILES`` names
the directories of its calls; ``STACKS_FD`` is the file of `stack_dumps`.

This folder is made importable as the package ``_flashpool`` without going on
``sys.path``, where a file of ours could shadow a module of the user's.
"""

import os
import sys

package = type(sys)("_flashpool")
package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules["_flashpool"] = package

from _flashpool import processes

if int(sys.argv[3]):
    # Before anything else: some of it looks at the limit when it is imported.
    processes.set_soft_limit(processes.DESCRIPTORS, int(sys.argv[3]))

from _flashpool.fork_server import zygote

zygote.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4], int(sys.argv[5]))
