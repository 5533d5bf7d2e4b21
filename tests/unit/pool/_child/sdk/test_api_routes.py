"""How a request becomes the arguments of a method of an API."""

import pytest

from flashpool.pool._child.sdk.api_routes import NOTHING, RouteParameters


def plain():
    pass


def body_only(body):
    pass


def item(item: int, double: bool = False):
    pass


def item_and_body(item: int, body: dict):
    pass


def anything(*args, **kwargs):
    pass


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "expected"),
    [
        (plain, {}, {}, NOTHING, ([], {})),
        (plain, {}, {}, {"a": 1}, ([{"a": 1}], {})),
        (body_only, {}, {}, {"a": 1}, ([], {"body": {"a": 1}})),
        (body_only, {}, {}, None, ([], {"body": None})),
        (body_only, {}, {"x": "1"}, {"a": 1}, ([], {"body": {"a": 1}})),
        (item, {"item": "7"}, {}, NOTHING, ([], {"item": 7})),
        (item, {"item": "7"}, {"double": "yes"}, NOTHING, ([], {"item": 7, "double": True})),
        (item_and_body, {"item": "7"}, {}, {"a": 1}, ([], {"item": 7, "body": {"a": 1}})),
        (anything, {}, {}, {"a": 1}, ([{"a": 1}], {})),
    ],
)
def test_arguments_come_from_path_query_and_body(method, path, query, body, expected):
    assert RouteParameters(method).arguments(path, query, body) == expected


@pytest.mark.parametrize("texts", [{"item": "seven"}, {"item": "7", "double": "perhaps"}])
def test_a_value_of_another_type_is_refused_with_its_name(texts):
    with pytest.raises(ValueError, match=r"expected (int|bool), got"):
        RouteParameters(item).arguments({}, texts, NOTHING)
