"""Counts of an app's requests, by route template and by outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.apps.serving.policies import policies_of
from flashpool.frontends.apps.serving.route_counts import (
    NO_ROUTE,
    OTHER,
    RouteCounts,
    WatchedPolicies,
    end_of,
)
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import AppEnd, AppSink, EndKind, LoadedRoute

from .test_asgi_proxy import Service, answers, ends

ROUTES = (LoadedRoute("/items/{item_id}", ("GET",)), LoadedRoute("/items", ("POST",)))


def loaded(routes: Sequence[LoadedRoute] = ROUTES) -> RouteCounts:
    """Counts of an app that has reported its routes."""
    counts = RouteCounts()
    policies = WatchedPolicies(policies_of(Settings.from_environ({}), "shop"))
    counts.serve(policies)
    policies(routes)
    return counts


def requests(counts: RouteCounts) -> dict[str, dict[str, int]]:
    return {one.route: one.requests for one in counts.stats()}


def test_paths_are_counted_under_their_templates() -> None:
    counts = loaded()
    for number in range(1000):
        counts.ended("GET", f"/items/{number}", "2xx", 0.002)
        counts.ended("GET", f"/nothing/{number}", "4xx", 0.001)
    counts.ended("POST", "/items", end_of(503), 0.5)
    # A method that the route does not allow counts for that route: the app answers 405.
    counts.ended("PUT", "/items", end_of(405), 0.001)
    assert requests(counts) == {
        "/items/{item_id}": {"2xx": 1000},
        "/items": {"5xx": 1, "4xx": 1},
        NO_ROUTE: {"4xx": 1000},
    }
    (items,) = (one for one in counts.stats() if one.route == "/items/{item_id}")
    assert items.latency.count == 1000
    assert items.latency.sum_s == pytest.approx(2.0)


def test_before_the_app_reports_its_routes_requests_have_no_route() -> None:
    counts = RouteCounts()
    counts.ended("GET", "/items/1", "5xx", 0.0)
    counts.serve(WatchedPolicies(policies_of(Settings.from_environ({}), "shop")))
    counts.ended("GET", "/items/1", "5xx", 0.0)
    assert requests(counts) == {NO_ROUTE: {"5xx": 2}}


def test_routes_beyond_a_bound_share_a_row() -> None:
    counts = loaded([LoadedRoute(f"/r{number}", ("GET",)) for number in range(1000)])
    for number in range(1000):
        counts.ended("GET", f"/r{number}", "2xx", 0.001)
    rows = requests(counts)
    assert len(rows) <= 201
    assert sum(count for row in rows.values() for count in row.values()) == 1000
    assert rows[OTHER]["2xx"] == 800


def test_routes_of_a_failed_successor_are_ignored() -> None:
    counts = loaded()
    successor = WatchedPolicies(policies_of(Settings.from_environ({}), "shop"))
    successor([LoadedRoute("/items/{other}", ("GET",))])
    counts.ended("GET", "/items/1", "2xx", 0.001)
    assert list(requests(counts)) == ["/items/{item_id}"]


def cut(sink: AppSink) -> None:
    sink.response(200, [], b"a", True)
    sink.ended(AppEnd(kind=EndKind.CUT))


def gone(_sink: AppSink) -> None:
    """Do not answer: the client disconnects."""


@pytest.mark.parametrize(
    ("on_request", "headers", "end"),
    [
        (answers(b"a", b"b"), [], "2xx"),
        (ends(EndKind.CRASHED, error_type="WorkerCrashed"), [], "5xx"),
        (ends(EndKind.RAISED), [], "5xx"),
        (answers(b"a"), [(b"content-length", b"9999999")], "4xx"),
        (answers(b"a"), [(b"flashpool-timeout", b"soon")], "4xx"),
        (cut, [], "cut"),
        (gone, [], "left"),
    ],
)
def test_each_outcome_is_counted_in_its_class(
    on_request: Callable[[AppSink], None], headers: list[tuple[bytes, bytes]], end: str
) -> None:
    counts = loaded()
    service = Service(on_request)
    proxy = AppProxy(service, max_body_mb=1, draining=lambda: False, routes=counts)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/items/7",
        "raw_path": b"/items/7",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": headers,
    }
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"", "more_body": on_request is gone},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_message: Any) -> None:
        return

    asyncio.run(asyncio.wait_for(proxy(scope, receive, send), 30))
    assert requests(counts) == {"/items/{item_id}": {end: 1}}
