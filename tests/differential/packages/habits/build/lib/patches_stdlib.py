"""Replaces functions of the standard library when it is imported."""

import builtins
import json
import sys
import time

_dumps = json.dumps


def dumps(value, *args, **kwargs):
    return "patched " + _dumps(value, *args, **kwargs)


json.dumps = dumps
builtins.patched = True
time.patched = True
sys.excepthook = lambda *error: None
