"""Finds the copy of pip that Python bundles for virtualenvs. Standard library only; any Python."""

from __future__ import annotations

import os


def wheel() -> str | None:
    """Return the path of the bundled wheel, which can be put on ``sys.path``; None if missing."""
    from glob import glob
    from importlib.util import find_spec

    spec = find_spec("ensurepip")
    folders = [os.path.dirname(spec.origin) + "/_bundled"] if spec and spec.origin else []
    # Debian keeps the wheel elsewhere.
    for folder in [*folders, "/usr/share/python-wheels"]:
        if found := sorted(glob(folder + "/pip-*.whl")):
            return found[-1]
    return None
