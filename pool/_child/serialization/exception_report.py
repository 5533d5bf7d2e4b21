"""Describes an exception as bounded plain text and data, whatever its own code does.

    describe(exc) -> ExceptionReport -> text()      as Python prints it, with user frames only
                                     -> as_dict()   the same, for programs

The exception is not trusted: every access that may run its code goes through `text_of` or `read`,
and every size, breadth and depth is limited. After `describe`, the exception is no longer needed.
"""

from __future__ import annotations

from .live_module import BY_VALUE
from .user_frames import user_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from traceback import FrameSummary
    from types import TracebackType
    from typing import Any

#: Most characters of a message, of another text (note, argument), of a source line, of all text.
MESSAGE_LIMIT = 8000
PIECE_LIMIT = 1000
LINE_LIMIT = 300
TEXT_LIMIT = 128_000
#: Most characters reported for an exception with its chain and members: as JSON, they stay far
#: below the limit of a frame's meta.
DATA_LIMIT = 400_000
#: Most frames of one traceback that are printed, and that are listed as data.
TEXT_FRAMES = 1200
DATA_FRAMES = 100
#: Most exceptions reported in total, links of a chain, members of a group, notes of an exception.
MAX_REPORTS = 60
MAX_DEPTH = 25
MAX_MEMBERS = 20
MAX_NOTES = 20

CAUSE_LINE = "The above exception was the direct cause of the following exception:"
CONTEXT_LINE = "During handling of the above exception, another exception occurred:"

# Read through the base class, because a subclass may have a property of the same name.
CAUSE: Callable[[BaseException], BaseException | None]
CONTEXT: Callable[[BaseException], BaseException | None]
TRACEBACK: Callable[[BaseException], TracebackType | None]
ARGS: Callable[[BaseException], tuple[Any, ...]]
CAUSE = BaseException.__dict__["__cause__"].__get__
CONTEXT = BaseException.__dict__["__context__"].__get__
TRACEBACK = BaseException.__dict__["__traceback__"].__get__
ARGS = BaseException.__dict__["args"].__get__
#: Modules whose classes are printed without the module's name.
_UNNAMED = ("builtins", *BY_VALUE)
_SUPPRESSED = BaseException.__dict__["__suppress_context__"].__get__
_NAME = type.__dict__["__name__"].__get__
_QUALNAME = type.__dict__["__qualname__"].__get__
_MRO = type.__dict__["__mro__"].__get__


# -- Safe access to an exception --------------------------------------------------------


def clip(text: str, limit: int) -> str:
    """Cut a long text in the middle, and make the text encodable."""
    if len(text) > limit:
        cut = len(text) - limit
        half = limit // 2
        text = f"{text[:half]} [... {cut} characters left out ...] {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def text_of(exc: BaseException, limit: int = MESSAGE_LIMIT) -> str:
    """Return ``str(exc)``, bounded, or the error that it raised."""
    try:
        return clip(str.__str__(str(exc)), limit)
    except BaseException as error:
        return f"<no message: {_NAME(type(error))} in its __str__>"


def read(exc: BaseException, name: str) -> Any:
    """Return an attribute; None if it does not exist, or reading it raises."""
    try:
        return getattr(exc, name, None)
    except BaseException:
        return None


def summary(exc: BaseException) -> str:
    """Return one line: class and message."""
    return _line(class_of(exc), text_of(exc, PIECE_LIMIT))


def class_of(exc: BaseException) -> str:
    """Return the name of the class, as Python prints it."""
    kind = type(exc)
    module = _module_of(kind)
    name: str = _QUALNAME(kind)
    return name if module in _UNNAMED else f"{module}.{name}"


def _module_of(kind: type[BaseException]) -> str:
    try:
        module = kind.__module__
    except BaseException:
        return "?"
    return module if type(module) is str else "?"


def _line(name: str, message: str) -> str:
    return f"{name}: {message}" if message else name


def members_of(exc: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, which may be Python's or the backport's."""
    if not any(_NAME(kind) == "BaseExceptionGroup" for kind in _MRO(type(exc))):
        return []
    members = read(exc, "exceptions")
    if not isinstance(members, tuple | list):
        return []
    return [member for member in members if isinstance(member, BaseException)]


# -- The report -------------------------------------------------------------------------


class ExceptionReport:
    """The report of one exception, with those of its causes and members."""

    __slots__ = (
        "args",
        "cause",
        "class_name",
        "context",
        "exit_code",
        "frames",
        "heading",
        "members",
        "message",
        "module",
        "name",
        "notes",
        "omitted",
        "stack",
    )

    #: `_Describer` sets these.
    name: str
    class_name: str
    module: str
    message: str
    #: Printed below the traceback: class and message; for a SyntaxError, its place.
    heading: str
    args: str
    notes: list[str]
    exit_code: int | None
    frames: list[tuple[str, int | None, str, str]]
    stack: str
    omitted: int
    cause: ExceptionReport | None
    context: ExceptionReport | None
    members: list[ExceptionReport]

    def text(self) -> str:
        """Return the message, then the traceback as Python prints it."""
        whole = "".join(self._lines())
        if whole == f"{self.heading}\n":
            return whole  # no frames, notes or causes: nothing to add
        first = self.heading.rstrip().rpartition("\n")[2]
        return f"{first}\n\n{clip(whole, TEXT_LIMIT)}"

    def _lines(self) -> Iterator[str]:
        if self.cause is not None:
            yield from self.cause._lines()
            yield f"\n{CAUSE_LINE}\n\n"
        elif self.context is not None:
            yield from self.context._lines()
            yield f"\n{CONTEXT_LINE}\n\n"
        if self.stack:
            yield f"Traceback (most recent call last):\n{self.stack}"
        yield f"{self.heading}\n"
        yield from (f"{note}\n" for note in self.notes)
        for number, member in enumerate(self.members, 1):
            yield f"  +---------------- {number} ----------------\n"
            text = "".join(member._lines())
            yield "".join(f"  | {line}" for line in text.splitlines(keepends=True))

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs, as data for JSON."""
        told = {
            "class_name": self.class_name,
            "module": self.module,
            "message": self.message,
            "args_repr": self.args,
            "notes": self.notes,
            "traceback": [list(frame) for frame in self.frames],
            "frames_omitted": self.omitted,
            "cause": self.cause and self.cause.as_dict(),
            "context": self.context and self.context.as_dict(),
            "exceptions": [member.as_dict() for member in self.members],
        }
        if self.exit_code is not None:
            told["exit_code"] = self.exit_code
        return told

    def size(self) -> int:
        """Return the number of characters in `as_dict`, without those of other reports."""
        texts = (self.message, self.args, self.class_name, self.module, *self.notes)
        frames = sum(len(file) + len(name) + len(line) for file, _, name, line in self.frames)
        return sum(map(len, texts)) + frames


def describe(exc: BaseException) -> ExceptionReport:
    """Report an exception, its chain and its members, within all limits."""
    return _Describer().describe(exc, ())


class _Describer:
    def __init__(self) -> None:
        self._left = MAX_REPORTS
        self._characters = DATA_LIMIT

    def describe(self, exc: BaseException, path: tuple[int, ...]) -> ExceptionReport:
        self._left -= 1
        path = (*path, id(exc))
        report = ExceptionReport()
        _fill(report, exc)
        _fill_frames(report, TRACEBACK(exc))
        self._characters -= report.size()
        report.cause = self._maybe(CAUSE(exc), path)
        hidden = report.cause is not None or _SUPPRESSED(exc)
        report.context = None if hidden else self._maybe(CONTEXT(exc), path)
        members = (self._maybe(member, path) for member in members_of(exc)[:MAX_MEMBERS])
        report.members = [member for member in members if member is not None]
        return report

    def _maybe(self, exc: BaseException | None, path: tuple[int, ...]) -> ExceptionReport | None:
        """Return None for an exception that was reported already, or exceeds the limits."""
        if exc is None or id(exc) in path or len(path) >= MAX_DEPTH or self._left <= 0:
            return None
        if self._characters <= 0:
            return None
        return self.describe(exc, path)


def _fill(report: ExceptionReport, exc: BaseException) -> None:
    report.name = clip(_NAME(type(exc)), PIECE_LIMIT)
    report.class_name = clip(_QUALNAME(type(exc)), PIECE_LIMIT)
    report.module = clip(_module_of(type(exc)), PIECE_LIMIT)
    report.exit_code = _exit_code(exc)
    report.message = text_of(exc) or ("0" if isinstance(exc, SystemExit) else "")
    report.heading = _heading(exc, report.message)
    report.args = _args_repr(exc)
    report.notes = _notes(exc)


def _exit_code(exc: BaseException) -> int | None:
    """Return the status with which the process would have exited."""
    if not isinstance(exc, SystemExit):
        return None
    code = read(exc, "code")
    if code is None:
        return 0
    return int(code) & 0xFF if isinstance(code, int) else 1


def _heading(exc: BaseException, message: str) -> str:
    if isinstance(exc, SyntaxError):
        import traceback

        try:
            lines = traceback.format_exception_only(type(exc), exc)
            return clip("".join(lines).rstrip("\n"), MESSAGE_LIMIT)
        except BaseException:
            pass  # its attributes have wrong types
    return _line(clip(class_of(exc), PIECE_LIMIT), message)


def _args_repr(exc: BaseException) -> str:
    import reprlib

    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 200
    try:
        return clip(brief.repr(ARGS(exc)), PIECE_LIMIT)
    except BaseException as error:
        return f"<no arguments: {_NAME(type(error))} in a __repr__>"


def _notes(exc: BaseException) -> list[str]:
    notes = read(exc, "__notes__")
    if not isinstance(notes, list | tuple):
        return []
    told = [note for note in notes[:MAX_NOTES] if isinstance(note, str)]
    return [clip(str.__str__(note), PIECE_LIMIT) for note in told]


def _fill_frames(report: ExceptionReport, traceback: TracebackType | None) -> None:
    users, omitted = user_traceback(traceback, TEXT_FRAMES)
    report.frames, report.stack, report.omitted = [], "", omitted
    if users is None:
        return
    from traceback import extract_tb, format_list

    frames = extract_tb(users)
    report.stack = clip("".join(format_list(frames)), TEXT_LIMIT)
    if omitted:
        report.stack += f"  [{omitted} frames in the middle left out]\n"
    half = DATA_FRAMES // 2
    if len(frames) > DATA_FRAMES:
        report.omitted += len(frames) - DATA_FRAMES
        frames[half:-half] = []
    report.frames = [_frame(frame) for frame in frames]


def _frame(frame: FrameSummary) -> tuple[str, int | None, str, str]:
    file, name, line = (clip(t, LINE_LIMIT) for t in (frame.filename, frame.name, frame.line or ""))
    return file, frame.lineno, name, line
