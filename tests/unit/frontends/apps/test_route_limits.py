import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Match, Mount, Route, WebSocketRoute

from flashpool.frontends.apps.route_limits import AppRoute, RouteTable
from flashpool.frontends.settings.apps import ROUTE_ISOLATION, ROUTE_TIMEOUTS
from flashpool.frontends.settings.route_patterns import WEBSOCKET


def route(text: str) -> AppRoute:
    methods, _, path = text.rpartition(" ")
    return AppRoute(path=path, methods=frozenset(methods.split("|")) if methods else None)


SHOP = [
    route("GET|HEAD /items/special"),
    route("GET|HEAD /items/{item_id:int}"),
    route("POST /train"),
    route("GET /slow/{rest:path}"),
    route("WEBSOCKET /chat"),
    route("/static/{path:path}"),
]


def table(
    timeouts: str = "none", isolation: str = "none", routes: list[AppRoute] = SHOP
) -> RouteTable:
    return RouteTable(
        routes,
        timeouts=ROUTE_TIMEOUTS.parse(timeouts),
        isolation=ROUTE_ISOLATION.parse(isolation),
        default_s=60.0,
    )


def test_the_summary_shows_limits_as_they_apply() -> None:
    rules = "POST /train=600, GET /items/{item_id}=2, /slow/{rest:path}=none"
    assert table(rules, routes=SHOP[1:4]).timeouts_text() == (
        "GET /items/{item_id:int}: 2 s; POST /train: 600 s; GET /slow/{rest:path}: no limit; "
        "everything else: 60 s"
    )
    assert table("*=5").timeouts_text() == "everything: 5 s"
    assert table().timeouts_text() == "everything: 60 s"
    assert table(isolation="POST /train=call").isolation_text() == (
        "POST /train: call; everything else: shared"
    )
    assert table("/static/{p:path}=3").timeouts_text() == (
        "/static/{path:path}: 3 s; everything else: 60 s"
    )


def test_a_request_gets_the_policy_of_the_route_the_app_chooses() -> None:
    found = table("GET /items/{x}=2, /items/special=7, *=9", "/train=call")
    assert found.policy("GET", "/items/5").timeout_s == 2
    assert found.policy("HEAD", "/items/5").timeout_s == 2
    # A method makes a pattern more specific than a literal path does.
    assert found.policy("GET", "/items/special").timeout_s == 2
    assert found.policy("PATCH", "/items/special").timeout_s == 7
    # The path matches a pattern of the setting, but no route of the app.
    assert found.policy("GET", "/items/abc").timeout_s == 9
    assert found.policy("GET", "/items/abc").route == ""
    assert found.policy("POST", "/train").isolation == "call"
    assert found.policy("POST", "/train").timeout_s == 9
    assert found.policy("DELETE", "/static/a/b").route == "/static/{path:path}"


def test_rules_for_all_routes_do_not_apply_to_websockets() -> None:
    assert table("*=9").policy(WEBSOCKET, "/chat").timeout_s == 60
    assert table("WEBSOCKET /chat=9").policy(WEBSOCKET, "/chat").timeout_s == 9
    assert table("*=9").policy("GET", "/chat").route == ""


def test_rules_that_match_no_route_are_warned_of() -> None:
    found = table("GET /itmes/{x}=2, DELETE /train=1, POST /train=1, *=1", "/nothing=call")
    warnings = found.warnings()
    assert len(warnings) == 3
    assert warnings[0].startswith("FLASHPOOL_ROUTE_TIMEOUTS: no route of the app is GET /itmes/{x}")
    assert "POST /train" in warnings[0]
    assert "DELETE /train" in warnings[1]
    assert warnings[2].startswith("FLASHPOOL_ROUTE_ISOLATION: no route of the app is /nothing")
    assert table("FETCH /static/{p:path}=1").warnings() == []


def test_unknown_methods_are_not_cached() -> None:
    found = table("*=9")
    for number in range(100):
        assert found.policy(f"M{number}", "/train").timeout_s == 9
    assert len(found._policies) == 0


@pytest.mark.parametrize(
    "path",
    [
        *("/items/special", "/items/7", "/items/x", "/train", "/slow/", "/slow/a/b"),
        *("/slow", "/static", "/static/", "/static/a", "/", "//items/7", "/a.b/c", "/odd/1:2"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_routes_are_chosen_as_starlette_does(method: str, path: str) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app = Starlette(
        routes=[
            Route("/items/special", endpoint),
            Route("/items/{item_id:int}", endpoint),
            Route("/items/{name}", endpoint, methods=["DELETE"]),
            Route("/train", endpoint, methods=["POST"]),
            Route("/slow/{rest:path}", endpoint),
            WebSocketRoute("/train", endpoint),
            Mount("/static", app=endpoint),
            Route("/{a}.b/c", endpoint),
            Route("/odd/{n:float}:{m}", endpoint),
        ]
    )
    routes = []
    for each in app.routes:
        if isinstance(each, Mount):
            routes.append(AppRoute(path=each.path + "/{path:path}"))
        elif isinstance(each, WebSocketRoute):
            routes.append(AppRoute(path=each.path, methods=frozenset({WEBSOCKET})))
        else:
            assert isinstance(each, Route)
            routes.append(AppRoute(path=each.path, methods=frozenset(each.methods or ())))
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    matches = [each.matches(dict(scope))[0] for each in app.routes]
    expected = next(
        (routes[matches.index(kind)] for kind in (Match.FULL, Match.PARTIAL) if kind in matches),
        None,
    )
    assert table(routes=routes).choose(method, path) == expected


def test_templates_with_unknown_converters_are_tolerated() -> None:
    found = table("/u/{x}=1", routes=[route("GET /u/{id:uuid7}"), route("GET /{a}{a}")])
    assert found.policy("GET", "/u/5").timeout_s == 1
    assert found.policy("GET", "/zz").route == ""
