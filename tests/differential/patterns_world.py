"""State of the interpreter that packages change for all: seen by a function that imports none.

In each group there is one such function. It imports something harmless, so that its calls
go where the group's other packages may be loaded.
"""

from typing import Final

from differential.programs import program_text

_HARMLESS: Final = {
    "own": "counts",
    "data": "fsspec",
    "learning": "networkx",
    "pictures": "PIL.Image",
    "web": "jinja2",
    "text": "regex",
    "small": "yaml",
    "jax": "numpy",
    "torch": "numpy",
    "gevent": "certifi",
}

_CODE: Final = """
def run():
    import copyreg
    import csv
    import gc
    import importlib.machinery
    import inspect
    import locale
    import logging
    import mimetypes
    import multiprocessing.synchronize
    import os
    import random
    import shutil
    import signal
    import socket
    import sys
    import tempfile
    import threading
    import typing
    import warnings

    import {harmless}

    def origin(function):
        return getattr(function, "__module__", None) or type(function).__name__

    root = logging.getLogger()
    finders = [type(finder).__module__ for finder in sys.meta_path]
    patched = [
        warnings.showwarning,
        warnings.formatwarning,
        inspect.getfile,
        typing._check_generic if hasattr(typing, "_check_generic") else None,
        multiprocessing.synchronize.SemLock._make_name,
        socket.socket,
        threading.Thread.start,
        sys.excepthook,
        sys.unraisablehook,
        threading.excepthook,
        random.random,
    ]
    return {{
        "filters": [str(entry[1:4]) for entry in warnings.filters],
        "origins": [origin(function) for function in patched],
        "variables": sorted(os.environ),
        "finders": [name for name in finders if "flashpool" not in name and name != "builtins"],
        "finder of distributions": hasattr(importlib.machinery.PathFinder, "find_distributions"),
        "logging": [root.level, len(root.handlers), sorted(logging._levelToName.values())],
        "logger methods": sorted(name for name in vars(logging.Logger) if name[0] != "_"),
        "callbacks of gc": [len(gc.callbacks), gc.isenabled()],
        "dialects": sorted(csv.list_dialects()),
        "archives": sorted(name for name, _ in shutil.get_archive_formats()),
        "pickled by copyreg": sorted(kind.__name__ for kind in copyreg.dispatch_table),
        "mimetypes": mimetypes.inited,
        "tempdir": tempfile.tempdir,
        "locale": locale.setlocale(locale.LC_ALL),
        "timeout": socket.getdefaulttimeout(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads": threading.active_count(),
        "alarm": str(signal.getsignal(signal.SIGALRM)),
        "harmless": {harmless}.__name__,
    }}
"""

for _group, _name in _HARMLESS.items():
    program_text(f"world_as_it_is_in_{_group}", _CODE.format(harmless=_name), group=_group)
