"""One piece of the user's source text, and the loader of its module.

A module's ``__loader__`` returns its text from ``get_source``: that is how `linecache`, and so
tracebacks and ``inspect.getsource``, finds the lines of files that do not exist. It costs nothing
until it is used, whereas filling ``linecache.cache`` would need its import. (`linecache` asks no
loader about names in angle brackets, hence ``flash:NAME``.)
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
    # Both without the imports.
    ModuleSpec = type(sys.__spec__)
    ModuleType = type(sys)

__all__ = ["ModuleSpec", "ModuleType", "Source", "check_text", "compile_ahead", "plain"]

#: Code that the zygote compiled, by file name and text.
_compiled: dict[tuple[str, str], CodeType] = {}
#: Compiled code of sources that need no other treatment than running.
plain: dict[tuple[str, str], CodeType] = {}


class Source:
    """One source text, and the loader of its module."""

    __slots__ = ("filename", "is_package", "text")

    def __init__(self, text: str, filename: str, *, is_package: bool = False) -> None:
        self.text = text
        self.filename = filename
        self.is_package = is_package

    def get_source(self, _name: str) -> str:
        """The text, for `linecache` (PEP 302)."""
        return self.text

    def create_module(self, _spec: ModuleSpec) -> None:
        """Let the import system make an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the text in the module."""
        exec(self.compile(), module.__dict__)

    def compile(self) -> CodeType:
        """Compile, free of this file's own ``__future__`` imports."""
        code = _compiled.get((self.filename, self.text))
        if code is None:
            try:
                code = compile(self.text, self.filename, "exec", dont_inherit=True)
            except SyntaxError:
                # A byte order mark is a file's, and the compiler takes it in bytes only.
                if self.text[:1] != "\ufeff":
                    raise
                self.text = self.text[1:]
                return self.compile()
            code = guarded(code, self.text, self.filename)
        return code


def compile_ahead(text: str, filename: str, *, is_plain: bool) -> CodeType | None:
    """In a zygote: have the code at hand when this source comes again.

    Sources with compiler warnings are not cached: the warnings belong to every call.
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
    """Check whether a text can be source at all; return its size in bytes.

    Raises:
        BadRequest: it has characters that no Python source may have.
    """
    if "\0" in text:
        raise BadRequest(f"{field}: has a NUL character, at {text.index(chr(0))}")
    try:
        return len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"{field}: has half a surrogate pair, at {error.start}") from None
