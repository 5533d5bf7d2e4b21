"""Pickles functions for a worker with another version of Python.

    code object -> its source, if it can be read and gives the same code here
                -> compiled in the worker; the function of that name is taken out of it

Bytecode is valid for one minor version of Python: another version refuses it, or runs it wrongly.
Functions that are pickled by reference need none of this, and neither does data. Code without
readable source (made by ``exec``, part of a longer statement) is refused, with advice.
"""

from __future__ import annotations
import __future__

import functools
import inspect
import subprocess
import sys
import tokenize
from types import CodeType
from typing import Any, Final

from .errors import InvalidRequest

#: ``from __future__ import annotations``, as a flag of the compiler and of code.
_FUTURES: Final = __future__.annotations.compiler_flag

_BETWEEN_STATEMENTS: Final = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)

Version = tuple[int, int]

OURS: Final[Version] = sys.version_info[:2]

#: The worker, which cannot import flashpool by name, evaluates this: it compiles the factory, and
#: takes the function's code object out of it.
_THERE: Final = (
    "[inner for outer in compile(source, filename, 'exec', flags, True).co_consts"
    " if hasattr(outer, 'co_consts') for inner in outer.co_consts"
    " if getattr(inner, 'co_name', None) == name][index]"
)


def wanted(python_version: str | None, base_python: str) -> Version:
    """Return the version that a call names, or else that of the pool's base interpreter."""
    if python_version is not None:
        major, minor = python_version.split(".")[:2]
        return int(major), int(minor)
    return OURS if base_python == sys.executable else _version_of(base_python)


@functools.lru_cache(maxsize=16)
def _version_of(python: str) -> Version:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", code], capture_output=True, check=True, timeout=30
        )
        major, minor = map(int, done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return OURS  # its zygote fails to start as well, and reports why
    return major, minor


def reduce_code(code: CodeType, version: Version) -> tuple[Any, ...]:
    """Return the reduce value that pickles a code object for another version.

    Raises:
        InvalidRequest: its source cannot be read.
    """
    source = _factory(code)
    index = None if source is None else _index(source, code)
    if index is None:
        raise InvalidRequest(_refusal(code, version))
    names = {
        "source": source,
        "filename": code.co_filename,
        "flags": code.co_flags & _FUTURES,
        "name": code.co_name,
        "index": index,
    }
    return eval, (_THERE, names)


def _factory(code: CodeType) -> str | None:
    """Return the source of a factory function whose parameters are the closure's variables."""
    try:
        lines = inspect.getsourcelines(code)[0]
        if not lines[0][:1].isspace():
            lines = _indented(lines)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None
    # Lines stay where they are in the file, for tracebacks.
    above = "\n" * max(0, code.co_firstlineno - 2)
    return f"{above}def factory({', '.join(code.co_freevars)}):\n{''.join(lines)}"


def _indented(lines: list[str]) -> list[str]:
    """Return the lines with a space before each statement, and other lines unchanged.

    A line may be inside a string, whose value must not change.
    """
    starts, begins = set(), True
    for token in tokenize.generate_tokens(iter(lines).__next__):
        if token.type in _BETWEEN_STATEMENTS:
            continue
        if begins:
            starts.add(token.start[0])
        begins = token.type == tokenize.NEWLINE
    return [f" {line}" if number in starts else line for number, line in enumerate(lines, 1)]


def _index(source: str, code: CodeType) -> int | None:
    """Return the index of the function among those of its name; None if it is missing.

    Files change, and a line may hold two lambdas: the function is the one that compiles to the same
    code.
    """
    flags = code.co_flags & _FUTURES
    try:
        module = compile(source, code.co_filename, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    factories = [one for one in module.co_consts if isinstance(one, CodeType)]
    inner = [one for outer in factories for one in outer.co_consts if isinstance(one, CodeType)]
    same = [_essence(one) == _essence(code) for one in inner if one.co_name == code.co_name]
    return same.index(True) if True in same else None


def _essence(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(map(_constant, code.co_consts))
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        constants,
    )


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _essence(value)
    if isinstance(value, str):
        # Up to 3.10 the qualified name of an inner function is a constant, with another prefix
        # here.
        return str, value.rpartition("<locals>.")[2]
    # 1, True and 1.0 are equal, and sets have no order.
    text = sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
    return type(value), text


def _refusal(code: CodeType, version: Version) -> str:
    ours, theirs = (".".join(map(str, one)) for one in (OURS, version))
    where = f"{code.co_filename}:{code.co_firstlineno}"
    return (
        f"{code.co_name} ({where}) cannot go to Python {theirs}: its bytecode is that of "
        f"Python {ours}, and its source could not be read, or is not its own. Define it with "
        "def in a file, or put it in a module that the call can import"
    )
