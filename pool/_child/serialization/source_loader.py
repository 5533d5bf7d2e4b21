"""A source text of the user, which is also the loader of its module.

A module's ``__loader__`` returns its text from ``get_source``: that is how `linecache`, and so
tracebacks and ``inspect.getsource``, find the lines of files that do not exist. That costs nothing
until it is used, whereas filling ``linecache.cache`` would need an import. (`linecache` asks no
loader about names in angle brackets, so the file name is ``flash:NAME``.)
"""

from __future__ import annotations

import sys

from ..wire import SOURCES, BadRequest
from .annotations import guarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    # Both classes, without imports.
    ModuleSpec = type(sys.__spec__)
    ModuleType = type(sys)

__all__ = ["ModuleSpec", "ModuleType", "Source", "check_text", "compile_ahead", "plain"]

#: Code that the zygote has compiled, by file name and text.
_compiled: dict[tuple[str, str], CodeType] = {}
#: Compiled code of sources that only have to be run.
plain: dict[tuple[str, str], CodeType] = {}


class Source:
    """A source text, which is also the loader of its module."""

    __slots__ = ("filename", "is_package", "text")

    def __init__(self, text: str, filename: str, *, is_package: bool = False) -> None:
        self.text = text
        self.filename = filename
        self.is_package = is_package

    def get_source(self, _name: str) -> str:
        """Return the text, for `linecache` (PEP 302)."""
        return self.text

    def create_module(self, _spec: ModuleSpec) -> None:
        """Let the import system create an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the text in the module."""
        exec(self.compile(), module.__dict__)

    def compile(self) -> CodeType:
        """Compile the text, without the ``__future__`` imports of this file."""
        code = _compiled.get((self.filename, self.text))
        if code is None:
            try:
                code = compile(self.text, self.filename, "exec", dont_inherit=True)
            except SyntaxError:
                # The compiler accepts a byte order mark only in bytes.
                if self.text[:1] != "\ufeff":
                    raise
                self.text = self.text[1:]
                return self.compile()
            code = guarded(code, self.text, self.filename)
        return code


def compile_ahead(text: str, filename: str, *, is_plain: bool) -> CodeType | None:
    """In a zygote: compile a source and cache the code, for calls to come.

    Sources with compiler warnings are not cached, because every call must show the warnings.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            source = Source(text, filename)
            code = source.compile()
    except (SyntaxError, ValueError, Warning, RecursionError, MemoryError):
        return None
    known = plain if is_plain else _compiled
    known[filename, text] = code
    while len(known) > SOURCES:
        del known[next(iter(known))]
    return code


def check_text(field: str, text: str) -> int:
    """Check whether a text can be source; return its size in bytes.

    Raises:
        BadRequest: the text has characters that no Python source may have.
    """
    if "\0" in text:
        raise BadRequest(f"{field}: has a NUL character, at {text.index(chr(0))}")
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"{field}: has half a surrogate pair, at {error.start}") from None
