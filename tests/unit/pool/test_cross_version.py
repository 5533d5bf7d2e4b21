"""Functions that become source for another version of Python."""

from collections.abc import Callable
from types import CodeType
from typing import Any

import pytest

from flashpool.pool import cross_version
from flashpool.pool.errors import InvalidRequest

#: A version that no interpreter has, so that source is needed.
OTHER = (3, 99)


def there(code: CodeType) -> CodeType:
    """Return what the other interpreter would make of the code."""
    evaluate, (expression, names) = cross_version.reduce_code(code, OTHER)
    made = evaluate(expression, names)
    assert isinstance(made, CodeType)
    return made


def documented() -> str:
    """Return a text.

    The docstring has several lines:
        some are indented.
    """
    return """a text
with lines
  of its own"""


def nested() -> Callable[[], object]:
    extra = 2

    def inner() -> tuple[str | None, int]:
        """Return the docstring.

        It has several lines.
        """
        # A comment
        # that is indented less
        value = (
            "first"
            f"""second
    {extra}"""
        )
        return value, extra

    return inner


class Thing:
    @staticmethod
    def method() -> str:
        """Return a text
        of two lines.
        """
        return "a\
        b"


@pytest.mark.parametrize(
    "function", [documented, nested, nested(), Thing.method], ids=lambda one: one.__qualname__
)
def test_texts_of_several_lines_stay_as_they_are(function: Any) -> None:
    made = there(function.__code__)
    assert cross_version._essence(made) == cross_version._essence(function.__code__)
    assert made.co_firstlineno == function.__code__.co_firstlineno
    assert made.co_filename == __file__


def test_code_without_source_is_refused() -> None:
    names: dict[str, Any] = {}
    exec("def f(): return 1", names)
    with pytest.raises(InvalidRequest, match="its source could not be read"):
        there(names["f"].__code__)
