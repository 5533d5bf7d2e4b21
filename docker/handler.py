"""The queue images' command: ``python handler.py``, with any of the SDK's flags.

The mode is read from the environment; `flashpool serve qb --help` says more.
"""

import sys

from flashpool.frontends.cli import main

if __name__ == "__main__":
    main(["serve", "qb", *sys.argv[1:]], prog_name="handler.py")
