import pytest

from flashpool.frontends.settings.apps import ROUTE_ISOLATION, ROUTE_TIMEOUTS
from flashpool.frontends.settings.route_patterns import (
    WEBSOCKET,
    RoutePattern,
    parse_rules,
    segments_of,
)
from flashpool.frontends.settings.table import Settings, SettingsError


def best(text: str, method: str, template: str) -> str:
    rule = parse_rules(text, str).best(method, segments_of(template))
    return rule.value if rule else ""


@pytest.mark.parametrize(
    ("pattern", "template", "covers"),
    [
        ("/items/{id}", "/items/{item_id}", True),
        ("/items/{id}", "/items/{item_id:int}", True),
        ("/items/{id}", "/items/special", True),
        ("/items/{id}", "/items/{rest:path}", False),
        ("/items/{id}", "/items/", False),
        ("/items/5", "/items/{item_id}", False),
        ("/items", "/items/", False),
        ("/slow/{rest:path}", "/slow/{anything:path}", True),
        ("/slow/{rest:path}", "/slow/a/{b}/c", True),
        ("/slow/{rest:path}", "/slow/", True),
        ("/slow/{rest:path}", "/slow", False),
        ("/{p:path}/meta", "/{q:path}/meta", True),
        ("/{p:path}/meta", "/a/meta", False),
        ("/f/{name}.txt", "/f/{n}.txt", True),
        ("/f/{name}.txt", "/f/{n}", False),
        ("/f/{name}", "/f/{n}.txt", True),
        ("/", "/", True),
        ("*", "/anything/{at:path}", True),
    ],
)
def test_a_pattern_matches_route_templates(pattern: str, template: str, covers: bool) -> None:
    assert RoutePattern.parse(pattern).covers(segments_of(template)) is covers


@pytest.mark.parametrize(
    ("text", "method", "template", "expected"),
    [
        ("/a=path, GET *=method, *=all", "GET", "/a", "method"),
        ("/a=path, GET *=method, *=all", "POST", "/a", "path"),
        ("/a=path, GET *=method, *=all", "POST", "/b", "all"),
        ("/{x}/b=right, /a/{x}=left", "GET", "/a/b", "left"),
        ("/{x}/{y}=one, /{x}/b=two", "GET", "/a/b", "two"),
        ("/{rest:path}=rest, /{x}=one", "GET", "/a", "one"),
        ("/a/{rest:path}=more, /{x}/{y}=less", "GET", "/a/{z}", "more"),
        ("GET /a=get, HEAD /a=head", "HEAD", "/a", "head"),
        ("GET /a=get, *=all", "HEAD", "/a", "get"),
        ("get /a=get", "GET", "/a", "get"),
        ("*=all", WEBSOCKET, "/chat", ""),
        ("websocket /chat=idle, *=all", WEBSOCKET, "/chat", "idle"),
    ],
)
def test_the_most_specific_pattern_wins_in_any_order(
    text: str, method: str, template: str, expected: str
) -> None:
    assert best(text, method, template) == expected
    assert best(", ".join(reversed(text.split(", "))), method, template) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GET /x=soon", ["in 'GET /x=soon'", "'soon' is not seconds"]),
        ("GET /x=-1", ["'-1'"]),
        ("GET /x=nan", ["'nan'"]),
        ("GET /x=0", ["'0'"]),
        ("GET /x=", ["in 'GET /x='"]),
        ("/a=1, GET /x", ["in 'GET /x'", "no ="]),
        ("x=1", ["'' does not begin with /"]),
        ("G-T /x=1", ["'G-T' is not a method"]),
        ("GET POST /x=1", ["'POST /x' does not begin with /"]),
        ("/x/{=1", ["parameter"]),
        ("/x/{a b}=1", ["parameter"]),
        ("/x/*=1", ["parameter"]),
        ("GET /x/{a}=1, get /x/{b:int}=2", ["in 'get /x/{b:int}=2'", "'GET /x/{a}=1'"]),
        ("*=1, *=2", ["in '*=2'"]),
    ],
)
def test_an_invalid_part_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"FLASHPOOL_ROUTE_TIMEOUTS": text})
    for word in ["FLASHPOOL_ROUTE_TIMEOUTS", *words]:
        assert word in str(caught.value)


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000"):
        parse_rules(",".join(f"/{n}=1" for n in range(1001)), str)


def test_values_are_parsed() -> None:
    limits = ROUTE_TIMEOUTS.parse("POST /train=600, GET /forever=none,\n *=2.5,")
    assert [rule.value for rule in limits] == [600.0, None, 2.5]
    assert str(limits) == "POST /train=600, GET /forever=none, *=2.5"
    assert str(ROUTE_TIMEOUTS.parse("none")) == "none"
    assert [rule.value for rule in ROUTE_ISOLATION.parse("POST /render=CALL, *=shared")] == [
        "call",
        "shared",
    ]
    with pytest.raises(ValueError, match="'fork' is not call or shared"):
        ROUTE_ISOLATION.parse("/x=fork")
