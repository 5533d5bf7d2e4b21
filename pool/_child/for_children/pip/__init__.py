"""The `pip` that programs started by a call find first: it installs for this call alone.

    python -m pip install x  ->  this module  ->  --target PACKAGES  ->  the real pip
    python -m pip list       ->  this module  ->  the real pip

`call_packages` puts the parent folder first on the ``PYTHONPATH`` of such programs. Other calls use
the environment at the same time, so no call may change it. If the environment has no pip, this
module uses the copy that Python bundles for virtualenvs (`ensurepip`). Standard library only; any
Python.
"""

from __future__ import annotations

import os
import sys

_ADVICE = (
    "flashpool: pip installs into a directory of this call alone, which goes with it. To have "
    "packages in every call, and built once, name them in the request's `dependencies`."
)
_REFUSAL = (
    "flashpool: nothing is uninstalled: other calls use this environment at the same time. Name the "
    "packages and versions that you want in the request's `dependencies`."
)
_OWN_PLACE = ("-t", "--target", "--prefix", "--root")
#: Variables: flashpool's settings file of pip, for programs that do not find this module; and the
#: user's own settings file, which it replaces.
_SETTINGS, _THEIR_SETTINGS = "PIP_CONFIG_FILE", "FLASHPOOL_PIP_CONFIG_FILE"
_NO_PIP = (
    "flashpool: there is no pip in this environment, and this Python brings no copy of it "
    "(ensurepip). Name packages in the request's `dependencies`, or pip itself."
)


def _adapt(argv: list[str]) -> None:
    """Make a command of pip leave the environment unchanged."""
    of_pip = argv[0] == "-m" or os.path.basename(argv[0]).startswith("pip")
    command = next((word for word in argv[1:] if word[:1] != "-"), None) if of_pip else None
    if command == "uninstall":
        sys.exit(_REFUSAL)
    if command == "install" and "-h" not in argv and "--help" not in argv:
        print(_ADVICE, file=sys.stderr)
        if not any(word.partition("=")[0] in _OWN_PLACE for word in argv):
            if "--user" in argv:
                argv.remove("--user")
            # `--upgrade`, or packages that an earlier command installed would stay.
            place = argv.index(command) + 1
            argv[place:place] = ["--upgrade", "--target", os.environ["FLASHPOOL_CALL_PACKAGES"]]
        else:
            os.environ.pop(_SETTINGS, None)
            if _THEIR_SETTINGS in os.environ:
                os.environ[_SETTINGS] = os.environ.pop(_THEIR_SETTINGS)


def _give_way() -> None:
    """Replace this module by the real pip."""
    import importlib
    import importlib.util

    bundled_pip = importlib.import_module("bundled_pip")
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    sys.path_importer_cache.pop(here, None)
    del sys.modules[__name__], sys.modules["bundled_pip"]
    if importlib.util.find_spec("pip") is None:
        wheel = bundled_pip.wheel()
        if wheel is None:
            sys.exit(_NO_PIP)
        sys.path.append(wheel)
    importlib.import_module("pip")


if "FLASHPOOL_CALL_PACKAGES" in os.environ:
    _adapt(sys.argv)
_give_way()
