"""Reads a variable when it is imported."""

import os

MODE = os.environ.get("READS_VARIABLE_MODE", "unset")
VERBOSE = "READS_VARIABLE_VERBOSE" in os.environ
