"""What one run of a program came to, and how two of them differ."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from differential.programs import EVERYTHING, Program

#: Characters of a value that are shown.
SHOWN: Final = 200
#: Items of a list that is shown whole.
FEW: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run: what it returned or raised, printed and wrote."""

    result: Any = None
    #: The class of what it raised, and its text for the reader.
    error_type: str | None = None
    error: str = field(default="", compare=False)
    #: Lines; which of the two streams came first is the pipe's affair, so they are sorted.
    stdout: tuple[str, ...] = ()
    #: Texts of the files in its directory, by name.
    files: dict[str, str] = field(default_factory=dict)
    #: Whether it ran in a process that had imported modules before.
    preloaded: bool = field(default=False, compare=False)


def masked(value: Any, scratch: Path) -> Any:
    """The value without the name of its directory, which is another one for each run."""
    return json.loads(json.dumps(value).replace(str(scratch), "<scratch>"))


def read_files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_bytes().decode(errors="backslashreplace")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(program: Program, expected: Outcome, found: Outcome) -> list[str]:
    """What about a run is not as it must be; a word each, then the two values."""
    pairs = [
        ("error", expected.error_type, found.error_type),
        ("result", _lasting(program, expected.result), _lasting(program, found.result)),
        ("stdout", expected.stdout, found.stdout),
        ("files", expected.files, found.files),
    ]
    if expected.error_type != found.error_type:
        # The rest follows from this one.
        detail = f" ({_short(found.error)})" if found.error else ""
        return [f"error: {found.error_type} instead of {expected.error_type}{detail}"]
    return [
        f"{what}: {_contrast(value, wanted)}" for what, wanted, value in pairs if wanted != value
    ]


def repeated(program: Program, outcomes: list[Outcome]) -> list[list[str]]:
    """For each run, what of its fresh values an earlier run had already."""
    seen: set[tuple[str, str]] = set()
    problems = []
    for outcome in outcomes:
        values = set(_leaves(_fresh(program, outcome.result)))
        again = sorted(values & seen)
        problems.append(
            [f"not fresh: {path or 'result'} is {_short(value)}" for path, value in again]
        )
        seen |= values
    return problems


def _lasting(program: Program, result: Any) -> Any:
    """The result with the kinds of its fresh values in their place."""
    if EVERYTHING in program.fresh:
        return _kinds(result)
    if not program.fresh or not isinstance(result, dict):
        return result
    return {key: _kinds(value) if key in program.fresh else value for key, value in result.items()}


def _fresh(program: Program, result: Any) -> Any:
    if EVERYTHING in program.fresh:
        return result
    if not isinstance(result, dict):
        return {}
    return {key: value for key, value in result.items() if key in program.fresh}


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(item) for key, item in value.items()}
    return [_kinds(item) for item in value] if isinstance(value, list) else type(value).__name__


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, json.dumps(value)


def _contrast(found: Any, wanted: Any) -> str:
    """What of two values is not the same; the rest of large ones is left out."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        return "; ".join(f"{key}: {_contrast(found.get(key), wanted.get(key))}" for key in keys)
    both = (found, wanted)
    if all(isinstance(value, list | tuple) for value in both) and max(map(len, both)) > FEW:
        more = [item for item in found if item not in wanted]
        less = [item for item in wanted if item not in found]
        if more or less:
            return f"more {_short(more)}, less {_short(less)}"
    return f"{_short(found)} instead of {_short(wanted)}"


def _short(value: Any) -> str:
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
