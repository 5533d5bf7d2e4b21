"""Refuses to be imported without a variable."""

import os

if "NEEDS_VARIABLE" not in os.environ:
    raise ImportError("NEEDS_VARIABLE is not set")
VALUE = os.environ["NEEDS_VARIABLE"]
