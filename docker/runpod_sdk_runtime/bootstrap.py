"""``python -m runpod_sdk_runtime.bootstrap``: serve the kind of RUNPOD_RUNTIME_KIND."""

import os
import sys

from .start import kind_of, start

if __name__ == "__main__":
    start(kind_of(os.environ), sys.argv[1:])
