"""What a server reports about instances on other pods, and to other pods about its own."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from flashpool.envs.concurrency.disk_threads import DiskThreads
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from flashpool.frontends.instance_files import MOST_INSTANCES, InstanceFiles, Known, key_of
from flashpool.frontends.instance_news import InstanceNews
from flashpool.pool.backend import Backend
from flashpool.pool.calls import InstanceRequest, Outcome
from flashpool.pool.instance_records import Elsewhere, InstanceRecord

THERE = Elsewhere("pod-b", True, 1_700_000_000.0)


@dataclass
class Files:
    """Scripted files, in place of those on a volume."""

    others: dict[str, Elsewhere] = field(default_factory=dict)
    told: list[Mapping[str, Known]] = field(default_factory=list)
    failures: int = 0
    exchanged: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def open(self) -> None: ...

    def exchange(self, mine: Mapping[str, Known]) -> dict[str, Elsewhere]:
        self.loop.call_soon_threadsafe(self.exchanged.set)
        if self.failures:
            self.failures -= 1
            raise OSError("the volume is gone")
        self.told.append(dict(mine))
        return dict(self.others)

    def close(self, mine: Mapping[str, Known]) -> None:
        self.told.append(dict(mine))


class Pool:
    """A backend with these instances."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    @property
    def watching(self) -> Any:
        return self

    def instances(self) -> set[str]:
        return self.names


def called(news: InstanceNews, name: str, *, unnamed: bool = False) -> None:
    news.called(InstanceRequest(instance=name, code=None, unnamed=unnamed))


def ended(name: str, calls: int = 1, because: str | None = None) -> Outcome:
    record = InstanceRecord(name, "Counter", 1.0, 2.0, calls, 1, ended_because=because)
    return Outcome(instance=record)


class Server:
    """News over scripted files."""

    def __init__(self, tmp_path: Any) -> None:
        self.files = Files()
        self.pool = Pool()
        disk = DiskThreads("instances", watch=VolumeWatch(tmp_path))
        self.news = InstanceNews(
            cast(InstanceFiles, self.files), disk, cast(Backend, self.pool), 0.01
        )

    async def beats(self, number: int = 2) -> None:
        """Wait until this many further exchanges have begun and ended."""
        for _ in range(number):
            self.files.exchanged.clear()
            await asyncio.wait_for(self.files.exchanged.wait(), 30)


def test_an_answer_says_where_else_its_instance_lives(tmp_path: Any) -> None:
    async def lives() -> None:
        server = Server(tmp_path)
        server.files.others[key_of("mine")] = THERE
        server.files.others[key_of("lost")] = THERE._replace(lives=False)
        server.news.start()
        await server.beats()
        for calls in (1, 2):
            answer = server.news.annotated(ended("mine", calls))
            assert answer.instance is not None
            assert answer.instance.as_dict()["elsewhere"] == {
                "pod": "pod-b",
                "lives": True,
                "last_used": "2023-11-14T22:13:20.000+00:00",
            }
            assert answer.warnings == (
                (
                    "instance 'mine' also lives on pod pod-b, with a state of its own: send all calls "
                    "of an instance to one pod"
                ),
            )
        first, second = (server.news.annotated(ended("lost", calls)) for calls in (1, 2))
        assert first.warnings == (
            (
                "instance 'lost' lived on pod pod-b (2023-11-14T22:13:20.000+00:00), and its state is "
                "lost"
            ),
        )
        assert second.warnings == ()
        assert second.instance is not None
        assert second.instance.elsewhere == THERE._replace(lives=False)
        alone = ended("alone")
        assert server.news.annotated(alone) is alone
        function = Outcome()
        assert server.news.annotated(function) is function
        await server.news.close()

    asyncio.run(lives())


def test_other_servers_learn_of_instances_that_were_created(tmp_path: Any) -> None:
    async def lives() -> None:
        server = Server(tmp_path)
        server.pool.names = {"loading"}
        for name in ("loading", "refused", "closed", "crashed"):
            called(server.news, name)
        server.news.annotated(ended("closed"))
        server.news.annotated(ended("crashed", because="it was killed"))
        server.news.start()
        await server.beats()
        told = server.files.told[-1]
        assert {key: one.lives for key, one in told.items()} == {
            key_of("loading"): True,
            key_of("closed"): False,
            key_of("crashed"): False,
        }
        await server.news.close()
        assert server.files.told[-1].keys() == told.keys()

    asyncio.run(lives())


def test_ids_given_by_callers_are_kept_longest(tmp_path: Any) -> None:
    async def lives() -> None:
        server = Server(tmp_path)
        for number in range(MOST_INSTANCES):
            called(server.news, f"named-{number}")
        for number in range(5):
            called(server.news, f"made-{number}", unnamed=True)
        called(server.news, "made-4")
        called(server.news, "named-new")
        called(server.news, "named-7")
        names = list(server.news._own)
        assert len(names) == MOST_INSTANCES
        assert names[-3:] == ["made-4", "named-new", "named-7"]
        assert not {"made-0", "made-3", "named-0", "named-1"} & set(names)
        assert len(server.news._unnamed) == 0
        await server.news.close()

    asyncio.run(lives())


def test_a_failing_volume_is_logged_once_and_retried(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def lives() -> None:
        server = Server(tmp_path)
        server.files.failures = 5
        server.files.others[key_of("mine")] = THERE
        server.news.start()
        await server.beats(8)
        assert server.news.annotated(ended("mine")).warnings
        await server.news.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(lives())
    assert caplog.text.count("the volume is gone") == 1
