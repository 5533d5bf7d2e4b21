import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flashpool.frontends.apps import platform_client
from flashpool.frontends.apps.errors import NoAnswer
from flashpool.frontends.apps.neighbours import Neighbours, neighbours_of

MANIFEST = {"version": "1.0", "resources": {"shop": {}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "app"
    path.mkdir()
    (path / "flash_manifest.json").write_text(json.dumps(MANIFEST))
    return path


class Times:
    """Sleeps that take no time and are recorded."""

    def __init__(self, most: int = 100) -> None:
        self.slept: list[float] = []
        self._most = most

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) >= self._most:
            raise asyncio.CancelledError


def asking(*answers: dict[str, str] | Exception) -> Callable[[], Awaitable[dict[str, str]]]:
    rest = list(answers)

    async def ask() -> dict[str, str]:
        answer = rest.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def test_endpoint_addresses_are_written_into_a_copy_of_the_manifest(folder: Path) -> None:
    found = Neighbours(folder, folder / ".flash" / "m.json", asking({"qb": "https://a"}))
    assert found.stats().age_s is None
    asyncio.run(found.refresh())
    assert json.loads(found.target.read_text()) == {
        **MANIFEST,
        "resources_endpoints": {"qb": "https://a"},
    }
    assert [path.name for path in found.target.parent.iterdir()] == ["m.json"]
    state = found.stats()
    assert (state.endpoints, state.failure) == (1, None)
    assert state.age_s is not None
    assert json.loads((folder / "flash_manifest.json").read_text()) == MANIFEST


def test_known_addresses_stay_when_the_platform_does_not_answer(folder: Path) -> None:
    times = Times()
    silence = [NoAnswer("silence")] * 4
    ask = asking({"a": "1"}, *silence, NoAnswer("x"), {"a": "2", "b": "3"})
    found = Neighbours(folder, folder / "m.json", ask, times.sleep)
    asyncio.run(found.refresh())
    before = found.target.read_text()
    asyncio.run(found.refresh())
    assert times.slept == [1.0, 2.0, 4.0]
    assert (found.stats().endpoints, found.stats().failure) == (1, "silence")
    assert found.target.read_text() == before
    asyncio.run(found.refresh())
    assert times.slept == [1.0, 2.0, 4.0, 1.0]
    assert (found.stats().endpoints, found.stats().failure) == (2, None)


def test_a_new_server_begins_with_the_addresses_on_disk(folder: Path) -> None:
    target = folder / ".flash" / "m.json"
    found = Neighbours(folder, target, asking({"qb": "https://a"}))
    found.begin()
    assert json.loads(target.read_text())["resources_endpoints"] == {}
    asyncio.run(found.refresh())
    after = Neighbours(folder, target, asking())
    after.begin()
    assert after.stats().endpoints == 1
    assert json.loads(target.read_text())["resources_endpoints"] == {"qb": "https://a"}
    target.write_text("[]")
    after.begin()
    assert after.stats().endpoints == 0


def test_refreshes_have_jittered_intervals(folder: Path) -> None:
    times = Times(most=5)
    found = Neighbours(folder, folder / "m.json", asking(*[{"a": "1"}] * 5), times.sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(found.run())
    assert all(270 <= seconds <= 330 for seconds in times.slept)
    assert len(set(times.slept)) > 1


def test_an_unwritable_target_counts_as_a_failure(folder: Path) -> None:
    (folder / "file").touch()
    found = Neighbours(folder, folder / "file" / "m.json", asking(*[{"a": "1"}] * 4), Times().sleep)
    asyncio.run(found.refresh())
    assert found.stats().failure
    assert found.stats().age_s is None


def test_without_an_environment_id_there_are_no_neighbours(folder: Path) -> None:
    assert neighbours_of(folder, {}) is None
    named = neighbours_of(folder, {"FLASH_ENVIRONMENT_ID": "e", "FLASH_MANIFEST_PATH": "/x/m.json"})
    assert named is not None
    assert named.target == Path("/x/m.json")


def served(folder: Path, answer: Callable[[dict[str, Any]], Any]) -> tuple[Neighbours, list[Any]]:
    """Refresh once, from a platform that a test scripts."""
    seen: list[Any] = []

    async def graphql(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append((request.headers.get("Authorization"), body["variables"]))
        found = answer(body)
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    async def main() -> Neighbours:
        app = web.Application()
        app.router.add_post("/graphql", graphql)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        found = neighbours_of(
            folder,
            {
                "FLASH_ENVIRONMENT_ID": "env",
                "RUNPOD_API_BASE_URL": f"http://127.0.0.1:{port}/",
                "RUNPOD_API_KEY": "key",
            },
        )
        assert found is not None
        found._sleep = Times().sleep
        try:
            await found.refresh()
        finally:
            await runner.cleanup()
        return found

    return asyncio.run(main()), seen


def platform(body: dict[str, Any]) -> Any:
    if "flashEnvironment" in body["query"]:
        return {"data": {"flashEnvironment": {"activeBuildId": "build"}}}
    return {"data": {"flashBuild": {"manifest": {"resources_endpoints": {"qb": "u", "odd": 5}}}}}


def test_the_platform_is_asked_for_the_active_build(folder: Path) -> None:
    found, seen = served(folder, platform)
    assert seen == [("Bearer key", {"id": "env"}), ("Bearer key", {"id": "build"})]
    assert json.loads(found.target.read_text())["resources_endpoints"] == {"qb": "u"}
    assert found.target == folder / ".flash" / "flash_manifest.json"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"errors": [{"message": "no such environment"}]}, "no such environment"),
        ({"data": {"flashEnvironment": None}}, "no flashEnvironment.activeBuildId"),
        ([], "no flashEnvironment"),
        ("not json", "not JSON"),
        (503, "answers 503"),
        (
            {"data": {"flashEnvironment": {"activeBuildId": "b"}, "flashBuild": {"manifest": 5}}},
            "no resources_endpoints",
        ),
    ],
)
def test_malformed_answers_are_failures(folder: Path, answer: Any, words: str) -> None:
    def answered(_body: dict[str, Any]) -> Any:
        if isinstance(answer, int):
            return web.Response(status=answer)
        return web.Response(text=answer) if isinstance(answer, str) else answer

    found, _ = served(folder, answered)
    assert words in str(found.stats().failure)
    assert not found.target.exists()


def test_an_oversized_answer_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_client, "_MOST_BYTES", 1000)
    found, _ = served(folder, lambda _: {"data": "x" * 2000})
    assert "more than 1000 bytes" in str(found.stats().failure)
