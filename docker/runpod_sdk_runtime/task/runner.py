"""``python -m runpod_sdk_runtime.task.runner``: serve the task of a pod."""

import sys

from ..start import start

if __name__ == "__main__":
    start("task", sys.argv[1:])
