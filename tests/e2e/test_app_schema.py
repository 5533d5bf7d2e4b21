"""Requests that schemathesis generates for an app get the same answers with and without us."""

from collections.abc import Iterator
from typing import Any

import pytest
from e2e.app_servers import AppServer, plain_uvicorn, serving_app
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed (uv sync --group fuzz)"
)

#: A connection that the client keeps outlives the test that opened it.
pytestmark = [pytest.mark.shared_pool, pytest.mark.slow]

#: Routes of the app that neither sleep nor return as much data as the request asks for.
PATHS = (
    *("/echo", "/items", "/items/{item_id}", "/form", "/files", "/upload", "/cookies", "/state"),
    *("/file", "/duplicates", "/no-content", "/own-error", "/raise", "/unencodable", "/print"),
)
EXAMPLES = 25


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AppServer, AppServer]]:
    folder = tmp_path_factory.mktemp("schema")
    with serving_app(folder, resource="web") as ours, plain_uvicorn(folder) as plain:
        yield ours, plain


@pytest.mark.timeout(900)
def test_server_errors_are_those_of_plain_uvicorn(
    both: tuple[AppServer, AppServer],
) -> None:
    ours, plain = both
    schema = schemathesis.openapi.from_url(f"{ours.url}/openapi.json")
    asked = 0

    def try_out(operation: Any) -> None:
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            status = case.call(base_url=ours.url).status_code
            if status >= 500:
                assert status == case.call(base_url=plain.url).status_code

        ask()

    for found in schema.include(path=list(PATHS)).get_all_operations():
        try_out(found.ok())
    assert asked > len(PATHS)
    assert ours.http.get("/ping").status_code == 200
    assert ours.stats()["apps"][0]["deaths"] == 0
