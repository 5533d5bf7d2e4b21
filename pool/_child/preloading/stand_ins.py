"""Stand-ins that a scout puts in place of objects that imports read, to record the reads.

They behave like the originals, as far as imports use them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Name(str):
    """A variable's name that records its comparisons, to find out which variables matter."""

    asked = False
    record: Callable[[str], None]

    def startswith(self, prefix: Any, *bounds: Any) -> bool:
        """See `str.startswith`."""
        for one in prefix if isinstance(prefix, tuple) else (prefix,):
            self.asked = True
            self.record(one)
        return super().startswith(prefix, *bounds)

    def _any(self, method: str, *args: Any) -> Any:
        """Run another method, and record that all variables may matter."""
        self.asked = True
        self.record("")
        return getattr(str, method)(self, *args)

    def __contains__(self, part: Any) -> bool:
        return bool(self._any("__contains__", part))

    def __getitem__(self, index: Any) -> str:
        return str(self._any("__getitem__", index))

    def endswith(self, suffix: Any, *bounds: Any) -> bool:
        """See `str.endswith`."""
        return bool(self._any("endswith", suffix, *bounds))

    def lower(self) -> str:
        """See `str.lower`."""
        return str(self._any("lower"))

    def upper(self) -> str:
        """See `str.upper`."""
        return str(self._any("upper"))


class Recorded:
    """Looks like a C function, except for its type; a Python function would bind to objects."""

    def __init__(self, original: Any, call: Callable[..., Any]) -> None:
        self._original = original
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __reduce__(self) -> Any:
        return getattr, (sys.modules[self._original.__module__], self._original.__name__)


class Argv(list):  # type: ignore[type-arg]
    """``sys.argv``, whose readers are recorded."""

    def __init__(self, values: list[str], read: Callable[[str], None]) -> None:
        super().__init__(values)
        self._record = read

    def __getitem__(self, index: Any) -> Any:
        self._record("argv")
        return super().__getitem__(index)

    def __iter__(self) -> Any:
        self._record("argv")
        return super().__iter__()

    def __len__(self) -> int:
        self._record("argv")
        return super().__len__()

    def __contains__(self, value: Any) -> bool:
        self._record("argv")
        return super().__contains__(value)

    def __eq__(self, other: object) -> bool:
        self._record("argv")
        return super().__eq__(other)

    __hash__ = None

    def __repr__(self) -> str:
        self._record("argv")
        return super().__repr__()

    def __add__(self, other: Any) -> Any:
        self._record("argv")
        return super().__add__(other)

    def index(self, *args: Any) -> int:
        """See `list.index`."""
        self._record("argv")
        return super().index(*args)

    def count(self, value: Any) -> int:
        """See `list.count`."""
        self._record("argv")
        return super().count(value)

    def copy(self) -> Any:
        """See `list.copy`."""
        self._record("argv")
        return super().copy()


class EveryWarning:
    """A filter's pattern that matches no warning, but sees all, including those of C code."""

    pattern = ""

    def __init__(self, read: Callable[[str], None]) -> None:
        self._record = read

    def match(self, _text: str) -> None:
        """Part of the warnings filter protocol."""
        self._record("warnings")
