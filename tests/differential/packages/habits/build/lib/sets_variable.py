"""Sets a variable when it is imported."""

import os

os.environ["SETS_VARIABLE"] = "set"
