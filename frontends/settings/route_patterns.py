"""Rules for routes: ``GET /items/{item_id}=2, /slow/{rest:path}=30, *=60``.

    text --parse_rules--> RouteRules --best(method, template)--> the rule that applies to a route

A pattern is compared with the *template* of a route, as the app declares it, never with a URL:

    literal          the same literal
    {name}           one segment of the route: a literal, or a parameter that is not a path
    {name:path}      as the last segment: the rest, one segment or more
    *                everything
    METHOD           that method only; without a method, every method but WEBSOCKET

Names of parameters do not matter, and neither do converters other than ``path``. If several
patterns cover a route, the pattern that names the method applies; then the pattern with more
literal segments; then the pattern whose segments are more specific, from the left. A rule for GET
also applies to HEAD, unless HEAD has a rule of its own. WEBSOCKET stands for WebSockets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Stands in place of a method for WebSockets.
WEBSOCKET: Final = "WEBSOCKET"
#: Parameters in normal form, which has no names.
_ONE: Final = "{}"
_REST: Final = "{:path}"
_EVERYTHING: Final = "*"
_PARAMETER: Final = re.compile(r"\{[^\W\d]\w*(?::([^\W\d]\w*))?\}")
_METHOD: Final = re.compile(r"[A-Za-z]+")
#: Largest number of rules in one setting.
_MOST_RULES: Final = 1000


def segments_of(template: str) -> tuple[str, ...]:
    """Return a template in normal form: ``/items/{item_id:int}`` is ``('items', '{}')``."""
    return tuple(_normal(segment) for segment in template.removeprefix("/").split("/"))


def _normal(segment: str) -> str:
    return _PARAMETER.sub(lambda found: _REST if found[1] == "path" else _ONE, segment)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePattern:
    """One pattern: which routes it covers, and how specific it is."""

    #: A method in capitals; empty: any method.
    method: str
    #: Segments in normal form; empty: the pattern covers every path.
    segments: tuple[str, ...]
    #: The pattern as written, with the method in capitals.
    text: str

    @classmethod
    def parse(cls, text: str) -> RoutePattern:
        """Parse a pattern; raise ValueError with the reason if it is invalid."""
        method, _, path = ("", "", text) if text[:1] in {"/", "*"} else text.partition(" ")
        method, path = method.upper(), path.strip()
        if method and not _METHOD.fullmatch(method):
            raise ValueError(f"{method!r} is not a method")
        written = f"{method} {path}".strip()
        if path == _EVERYTHING:
            return cls(method=method, segments=(), text=written)
        if not path.startswith("/"):
            raise ValueError(f"{path!r} does not begin with / and is not *")
        segments = segments_of(path)
        for segment in segments:
            if set(segment.replace(_REST, "").replace(_ONE, "")) & set("{}*"):
                raise ValueError(f"{path!r} has a parameter that is not written as {{name}}")
        return cls(method=method, segments=segments, text=written)

    def covers(self, template: tuple[str, ...]) -> bool:
        """Return whether the pattern covers a route with this template, in its normal form."""
        if not self.segments:
            return True
        if self.segments[-1] == _REST and len(template) >= len(self.segments):
            return all(map(_covers, self.segments[:-1], template))
        return len(template) == len(self.segments) and all(map(_covers, self.segments, template))

    def nearness(self, method: str) -> int:
        """Return 2 for this method, 1 for GET if it is HEAD, 0 for any method, else -1."""
        if self.method == method:
            return 2
        if self.method:
            return 1 if (self.method, method) == ("GET", "HEAD") else -1
        return -1 if method == WEBSOCKET else 0

    @property
    def specificity(self) -> tuple[int, tuple[int, ...]]:
        """Return a key that is larger for a more specific pattern, of those for one route."""
        if not self.segments:
            return -1, ()
        kinds = tuple(map(_kind, self.segments))
        return kinds.count(3), kinds


def _covers(mine: str, theirs: str) -> bool:
    return mine == theirs or (mine == _ONE and theirs != "" and _REST not in theirs)


def _kind(segment: str) -> int:
    """Return 3 for a literal, 2 for a parameter with text, 1 for a parameter, 0 for a path."""
    if "{" not in segment:
        return 3
    return {_ONE: 1, _REST: 0}.get(segment, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule(Generic[T]):
    """A pattern and its value."""

    pattern: RoutePattern
    value: T
    #: The value as it was written.
    written: str

    def __str__(self) -> str:
        return f"{self.pattern.text}={self.written}"


@dataclass(frozen=True, slots=True)
class RouteRules(Generic[T]):
    """All rules of one setting."""

    rules: tuple[RouteRule[T], ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.rules)) or "none"

    def __iter__(self) -> Iterator[RouteRule[T]]:
        return iter(self.rules)

    def best(self, method: str, template: tuple[str, ...]) -> RouteRule[T] | None:
        """Return the rule that applies to a route of the app, or None."""
        covering = [
            rule
            for rule in self.rules
            if rule.pattern.nearness(method) >= 0 and rule.pattern.covers(template)
        ]
        return max(
            covering,
            key=lambda rule: (rule.pattern.nearness(method), rule.pattern.specificity),
            default=None,
        )

    def otherwise(self, method: str = "") -> RouteRule[T] | None:
        """Return the rule for requests that match no route of the app, or None."""
        everything = [rule for rule in self.rules if not rule.pattern.segments]
        covering = [rule for rule in everything if rule.pattern.nearness(method) >= 0]
        return max(covering, key=lambda rule: rule.pattern.nearness(method), default=None)


def parse_rules(text: str, parse_value: Callable[[str], T]) -> RouteRules[T]:
    """Parse ``PATTERN=VALUE, ...``; a ValueError names the invalid part."""
    if text.strip().lower() == "none":
        return RouteRules()
    parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    if len(parts) > _MOST_RULES:
        raise ValueError(f"{len(parts)} rules; at most {_MOST_RULES} are accepted")
    rules: dict[tuple[str, tuple[str, ...]], RouteRule[T]] = {}
    for part in parts:
        rule = _parse_rule(part, parse_value)
        key = (rule.pattern.method, rule.pattern.segments)
        if key in rules:
            raise ValueError(f"in {part!r}: the same routes have a value in {str(rules[key])!r}")
        rules[key] = rule
    return RouteRules(tuple(rules.values()))


def _parse_rule(part: str, parse_value: Callable[[str], T]) -> RouteRule[T]:
    written, equals, value = part.rpartition("=")
    if not equals:
        raise ValueError(f"in {part!r}: no = between a route and its value")
    try:
        pattern = RoutePattern.parse(written.strip())
        return RouteRule(pattern=pattern, value=parse_value(value.strip()), written=value.strip())
    except ValueError as error:
        raise ValueError(f"in {part!r}: {error}") from None
