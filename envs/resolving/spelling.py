"""Advice for text that is not a requirement: what the author meant, and how to write it.

Pure: from a text to one sentence of advice, or none. Nothing is corrected silently: only the author
knows what a requirement means.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["option_advice", "spelling_advice"]

_SSH: Final = re.compile(r"(?:git\+)?(?:ssh://)?(\w+@[\w.-]+):(?!\d+/)/?([\w./-]+)$")
_GIT_PROTOCOL: Final = re.compile(r"(?:git\+)?git://(.+)$")
_OTHER_VCS: Final = re.compile(r"(hg|svn|bzr)\+")
_HOSTED: Final = re.compile(r"(?:www\.)?((?:github|gitlab|bitbucket|codeberg)\.\w+/[\w.-]+/\S+)$")
_CONDA: Final = re.compile(r"([A-Za-z0-9][\w.-]*)\s*=\s*([\d][\w.*]*)(=\S*)?$")
_VERSION_AT: Final = re.compile(r"([A-Za-z0-9][\w.-]*)\s*@\s*v?(\d[\w.]*)$")
_BARE_VERSION: Final = re.compile(r"([A-Za-z][\w-]*)\s+(\d[\w.]*)$")
_MANY: Final = re.compile(r"[A-Za-z][\w.-]*(?:[<>=!~]=?[\w.]+)?(?:\s*,\s*|\s+)[A-Za-z][\w.-]*")

_OPTIONS: Final = (
    (
        ("-e", "--editable"),
        (
            "an environment is shared by calls, so nothing in it can be edited: leave out the "
            "option and name the directory or repository itself"
        ),
    ),
    (
        ("-r", "--requirement"),
        (
            "a file of requirements is not read: send its lines, one an item; index settings "
            "belong to the server"
        ),
    ),
    (
        ("-c", "--constraint"),
        "a file of constraints is not read: write the versions into the requirements, one an item",
    ),
    (
        ("--pre",),
        "ask for the pre-release of one package by its version, as in `name>=2.0rc1`",
    ),
    (
        ("--no-binary", "--only-binary", "--no-build-isolation", "--config-settings", "--prefer-binary"),
        "how packages are built is not for a request to say: give package requirements only",
    ),
)  # fmt: skip
_OPTIONS_ADVICE: Final = "give package requirements only; index settings belong to the server"


def option_advice(text: str) -> str:
    """Return what to write instead of an option."""
    for options, advice in _OPTIONS:
        for option in options:
            rest = text[len(option) :]
            short = len(option) == 2
            if text.startswith(option) and (short or not rest or rest[0] in " ="):
                return advice
    return _OPTIONS_ADVICE


def spelling_advice(text: str) -> str:
    """Return how to write what was probably meant; empty if that is not clear."""
    text = text.strip()
    if found := _SSH.match(text):
        return f"write it as `git+ssh://{found[1]}/{found[2]}`"
    if found := _GIT_PROTOCOL.match(text):
        return f"uv does not speak that protocol: write it as `git+https://{found[1]}`"
    if _OTHER_VCS.match(text.rpartition(" @ ")[2]):
        return "uv reads Git repositories only: name the URL of a wheel or a source archive"
    if found := _HOSTED.match(text):
        return f"write it as `git+https://{found[1]}`"
    if found := _CONDA.match(text) or _VERSION_AT.match(text) or _BARE_VERSION.match(text):
        return f"write it as `{found[1]}=={found[2]}`"
    if _MANY.match(text):
        return "write one package an item, as in [`numpy`, `pandas>=2`]"
    return ""
