"""One setting: a row of the table behind `settings.Settings`.

    a group (a dataclass) -- its fields -->  name: type = setting(kind, default, meaning)
                                                            |
                          -- `rows` --> name -> Setting  <--'

A field is a setting, and its row is the field's metadata. Groups have empty ``__slots__``, because
a class cannot have several bases with slots; `Settings` has the slots of all fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import parsers as kind

_KEY: Final = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    kind: kind.Kind
    #: Returns the default, as text of the variable.
    default: Callable[[], str]
    meaning: str
    #: Returns the default on a RunPod pod, from the environment; None: the usual default.
    pod: Callable[[Mapping[str, str]], str | None]
    secret: bool
    #: The platform's variable for the same value, or empty; flashpool's variable takes precedence.
    also: str


def setting(
    kind: kind.Kind,
    default: str | Callable[[], str],
    meaning: str,
    *,
    pod: str | Callable[[Mapping[str, str]], str | None] | None = None,
    secret: bool = False,
    also: str = "",
) -> Any:
    """Return a field that is a setting; ``pod`` and ``also`` as in `Setting`."""
    row = Setting(
        kind=kind,
        default=default if callable(default) else lambda: default,
        meaning=meaning,
        pod=pod if callable(pod) else lambda _environ: pod,
        secret=secret,
        also=also,
    )
    return field(metadata={_KEY: row})


def rows(group: type) -> dict[str, Setting]:
    """Return field name -> row, in the order of the class."""
    fields = dataclasses.fields(group)
    return {item.name: item.metadata[_KEY] for item in fields if _KEY in item.metadata}
