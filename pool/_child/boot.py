"""``python -I -S boot.py CONTROL_FD SUPERVISOR_PID DESCRIPTORS FILES STACKS_FD``: become a zygote.

``DESCRIPTORS`` is the soft limit of open files to set; 0 keeps the current limit. ``FILES`` is the
name of the directories for files of calls; ``STACKS_FD`` is the file of `stack_dumps`.

This folder becomes importable as the package ``_flashpool`` without being on ``sys.path``, where
its modules could shadow the user's.
"""

import os
import sys

package = type(sys)("_flashpool")
package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
sys.modules["_flashpool"] = package

from _flashpool import processes

if int(sys.argv[3]):
    # Before the zygote's imports: some modules read the limit when they are imported.
    processes.set_soft_limit(processes.DESCRIPTORS, int(sys.argv[3]))

from _flashpool.fork_server import zygote

zygote.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[4], int(sys.argv[5]))
