from flashpool.frontends.apps.manifest import DeclaredRoute
from flashpool.frontends.apps.route_checks import declared_routes, differences, oddities
from flashpool.frontends.apps.route_limits import AppRoute


def declared(*texts: str) -> list[DeclaredRoute]:
    split = [text.split(" ", 1) for text in texts]
    return [DeclaredRoute(method=method, path=path, function="f") for method, path in split]


def test_valid_routes_produce_no_warnings() -> None:
    assert oddities(declared("GET /a", "post /a", "Delete /a/{b}", "PUT /a", "PATCH /a")) == []


def test_invalid_routes_produce_the_clients_messages() -> None:
    found = oddities(
        declared("POST /api/process", "post /api/process", "FETCH /a", "GET a", "POST /execute")
    )
    assert found == [
        "method must be one of GET, POST, PUT, DELETE, PATCH, got: 'FETCH' (function 'f')",
        "path must start with '/', got: 'a' (function 'f')",
        "Function 'f' cannot use reserved path '/execute'. Reserved paths: /execute, /ping",
        "Route conflict detected: POST /api/process defined twice",
    ]


def test_differences_between_manifest_and_app_are_listed() -> None:
    loaded = [
        AppRoute(path="/a", methods=frozenset({"GET", "HEAD"})),
        AppRoute(path="/more", methods=frozenset({"HEAD"})),
        AppRoute(path="/docs", methods=frozenset({"GET", "HEAD"})),
        AppRoute(path="/ping", methods=frozenset({"GET"})),
        AppRoute(path="/chat", methods=frozenset({"WEBSOCKET"})),
        AppRoute(path="/static/{path:path}"),
    ]
    assert differences(declared_routes(declared("get /a")), loaded[:1]) == []
    assert differences(declared_routes(declared("GET /a", "POST /gone")), loaded) == [
        "the manifest has routes that the app lacks: POST /gone",
        "the app has routes that the manifest lacks: HEAD /more",
    ]
