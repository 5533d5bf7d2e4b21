"""Races between a build and its lease: evictions, archives, a quota."""

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import (
    DiskFull,
    Environments,
    QuotaReached,
    ResolutionFailed,
    Spec,
    StoreUnavailable,
    operations,
)
from flashpool.envs.building import builder, spare_virtualenvs, speculation
from flashpool.envs.resolving import base_stubs
from flashpool.envs.store import apart, claims, layout, manifest
from support import wants
from support.waiting import until

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]
_MB = 1 << 20


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def test_an_environment_evicted_before_it_is_finished_keeps_no_claim(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise other processes would wait for the claim as long as this one lives."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            provider = await environments.open()
            real = provider.lookup.unfinished

            def unfinished(digest: str) -> bool:
                found = real(digest)
                provider.open_store.evictor.evict(digest)
                return found

            monkeypatch.setattr(type(provider.lookup), "unfinished", lambda _, d: unfinished(d))
            with pytest.raises(StoreUnavailable, match="evicted as fast as it was built"):
                await environments.acquire(spec("alpha"))
            await provider.settled()
            assert os.listdir(setup.store("claims")) == []

    run(main())


def test_an_environment_deleted_by_others_is_noticed(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """By hand, or by a pod that took this one for dead: the next call gets a new copy."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            first = await environments.acquire(spec("alpha"))
            provider = await environments.open()
            await provider.settled()
            root = first.environment.root
            assert root is not None
            await asyncio.to_thread(root.rename, root.with_name("elsewhere"))
            await asyncio.to_thread(provider.open_store.beat)
            with await environments.acquire(spec("alpha")) as found:
                assert (found.origin, found.root) == ("built", root)
                assert version_in(found.python, "alpha") == "2.0"
            first.release()
            await provider.settled()
            assert set(provider.open_store.table.held().values()) == {0}

    run(main())


def _packed(setup: Any, run: Run, number: int) -> None:
    """Create archives of this many environments of two megabytes, without a quota."""
    for each in range(number):
        setup.base.index.add("big", f"1.{each}", files={"data.bin": os.urandom(2 * _MB)})

    async def main() -> None:
        async with Environments(setup.settings(mode="archive")) as environments:
            for each in range(number):
                (await environments.acquire(spec(f"big==1.{each}"))).release()
            await (await environments.open()).settled()

    run(main())


def test_the_quota_holds_for_environments_from_archives(
    setup: Any, run: Run, version_in: VersionIn, tmp_path: Path
) -> None:
    _packed(setup, run, 4)
    settings = setup.settings(mode="archive", local=tmp_path / "second", quota_mb=5)

    async def main() -> None:
        async with Environments(settings) as environments:
            measure = (await environments.open()).open_store.evictor.measure
            for each in (0, 1, 2, 3, 0):
                with await environments.acquire(spec(f"big==1.{each}")) as found:
                    assert found.origin == "archive"
                    assert version_in(found.python, "big") == f"1.{each}"
                assert (await asyncio.to_thread(measure)).total <= 5 * _MB

    run(main())


def test_archives_are_evicted_for_leased_environments(setup: Any, run: Run, tmp_path: Path) -> None:
    _packed(setup, run, 3)
    settings = setup.settings(
        mode="archive", local=tmp_path / "second", quota_mb=5, room_wait_s=0.3
    )

    async def main() -> None:
        async with Environments(settings) as environments:
            leases = [await environments.acquire(spec(f"big==1.{each}")) for each in (0, 1)]
            with pytest.raises(QuotaReached, match="in use fill the quota of 5 MB"):
                await environments.acquire(spec("big==1.2"))
            for lease in leases:
                assert lease.environment.python.exists()
                lease.release()
            with await environments.acquire(spec("big==1.2")) as found:
                assert found.origin == "archive"

    run(main())


def test_without_working_claims_concurrent_builds_still_succeed(
    setup: Any, run: Run, version_in: VersionIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several builders of one digest: the first rename wins, and nothing else remains."""
    monkeypatch.setattr(claims.Claims, "take", lambda _self, _digest: True)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            # With a quota there is no draft, so all builders overlap for a while.
            settings = setup.settings(quota_mb=1000)
            pods = [await stack.enter_async_context(Environments(settings)) for _ in range(4)]
            leases = await asyncio.gather(*[pod.acquire(spec("beta")) for pod in pods])
            assert len({lease.environment.root for lease in leases}) == 1
            assert sum(lease.environment.origin == "built" for lease in leases) > 1
            for pod in pods:
                await (await pod.open()).settled()
            assert version_in(leases[0].environment.python, "beta") == "1.0"
            checked = await operations.verify(pods[0])
            assert [(each.problem, each.sealed) for each in checked] == [("", True)]
            for lease in leases:
                lease.release()
        assert os.listdir(setup.store("scratch")) == []

    run(main())


def test_a_branch_is_locked_to_its_commit(
    setup: Any, run: Run, version_in: VersionIn, tmp_path: Path
) -> None:
    """A branch is resolved to a commit once; `refresh` resolves it again."""
    wheel = setup.base.index.add("forge", "1.0")
    source = tmp_path / "forge"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        '[project]\nname = "forge"\nversion = "1.0"\n'
    )
    (source / "own.py").write_text(
        "import os, shutil\n"
        f"def build_wheel(folder, *a):\n"
        f"    return os.path.basename(shutil.copy({str(wheel)!r}, folder))\n"
    )

    program = wants.program("git")

    def git(*argv: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run([program, "-C", source, *who, *argv], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit() -> str:
        git("add", ".")
        git("commit", "-q", "--allow-empty", "-m", "more")
        return git("rev-parse", "HEAD")

    git("init", "-q")
    asked = f"forge @ git+{source.as_uri()}"

    async def main() -> None:
        digests = set()
        async with Environments(setup.settings()) as environments:
            for _ in range(2):
                head = await asyncio.to_thread(commit)
                with await environments.acquire(spec(asked, refresh=True)) as found:
                    assert version_in(found.python, "forge") == "1.0"
                    digests.add(found.digest)
                    shown = await operations.show(environments, found.digest)
                    assert shown.facts.lock == (f"{asked}@{head}",)
                await asyncio.to_thread(commit)
                with await environments.acquire(spec(asked)) as found:
                    assert found.digest in digests
        assert len(digests) == 2

    run(main())


#: Functions that access a disk.
_ASKING = {
    Path: "is_file is_dir exists stat lstat mkdir touch unlink rename read_text write_text open",
    os: "listdir stat lstat statvfs utime readlink open scandir unlink rename",
    os.path: "isfile isdir exists",
}


def test_no_disk_is_accessed_on_the_event_loop(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a volume that hangs would block every call and all probes."""
    asked: list[str] = []

    def watched(real: Any, name: str) -> Any:
        def watch(*args: Any, **options: Any) -> Any:
            mine = threading.current_thread() is threading.main_thread()
            if mine and args and str(args[0]).startswith(str(setup.volume)):
                asked.append(f"{name} {args[0]}")
            return real(*args, **options)

        return watch

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.open()
            with monkeypatch.context() as patch:
                for owner, names in _ASKING.items():
                    for name in names.split():
                        patch.setattr(owner, name, watched(getattr(owner, name), name))
                for line in ("alpha", "beta", "alpha"):
                    (await environments.acquire(spec(line))).release()
                await (await environments.open()).settled()

    run(main())
    assert asked == []


@pytest.mark.parametrize("mode", ["volume", "archive"])
@pytest.mark.parametrize("limits", [{"min_free_mb": 1}, {"quota_mb": 300, "max_age_s": 3600.0}])
def test_no_stand_in_is_waited_for_on_the_event_loop(
    limits: dict[str, Any], mode: str, setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each access to a volume that may hang can take for ever."""
    asked: list[str] = []
    real = apart._borrowed

    def watched() -> Any:
        if threading.current_thread() is threading.main_thread():
            asked.append("".join(traceback.format_stack(limit=4)[:-1]))
        return real()

    monkeypatch.setattr(apart, "_roots", frozenset())
    monkeypatch.setattr(apart, "_borrowed", watched)
    apart.keep_apart(setup.volume)

    async def main() -> None:
        async with Environments(setup.settings(mode=mode, **limits)) as environments:
            for line in ("alpha", "beta", "alpha", "alpha==1.0"):
                with await environments.acquire(spec(line)) as lease:
                    await environments.preloads(lease.digest)
            provider = await environments.open()
            await provider.settled()
            await provider.evict_unused()
            with pytest.raises(ResolutionFailed):
                await environments.acquire(spec("alpha==9.0"))

    def all_have_ended() -> bool:
        """Threads that were still busy at the end of `main` have kept their stand-ins since."""
        apart.end_idle_stand_ins()
        return not _stand_ins()

    run(main())
    asyncio.run(until(all_have_ended))
    assert asked == []


def _stand_ins() -> list[str]:
    """Return the processes that this one started to ask volumes in its place."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split()
    return [int(pid) for pid in children if b"apart_program" in _command_line(pid)]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has exited
        return b""


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (claims.Claims, "take"),
        (layout.Store, "make_scratch"),
        (spare_virtualenvs.SpareVirtualenvs, "_new"),
        (base_stubs.Stubs, "_write"),
    ],
)
def test_a_directory_created_for_a_cancelled_call_is_removed(
    owner: type, step: str, setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be cancelled, so its result would have no owner and stay for ever."""
    setup.base.install("beta")
    setup.base.index.add("gamma", "1.0")
    real = getattr(owner, step)
    reached, go_on = threading.Event(), threading.Event()

    def slowly(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        reached.set()
        assert go_on.wait(20)
        return made

    def left() -> list[str]:
        return os.listdir(setup.store("claims")) + os.listdir(setup.store("scratch"))

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            monkeypatch.setattr(owner, step, slowly)
            asked = asyncio.ensure_future(environments.acquire(spec("gamma")))
            assert await asyncio.to_thread(reached.wait, 20)
            asked.cancel()
            await asyncio.wait({asked})
            go_on.set()
        await until(lambda: not left())

    run(main())


def test_a_virtualenv_that_could_not_be_created_leaves_nothing(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because the disk becomes full meanwhile."""

    def half(path: Path, *_: Any) -> None:
        path.mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.open()
            monkeypatch.setattr(spare_virtualenvs, "make_virtualenv", half)
            with pytest.raises(DiskFull):
                await environments.acquire(spec("alpha"))
        assert os.listdir(setup.store("scratch")) == []

    run(main())


_WITHOUT_DRAFT = {"quota_mb": 100_000}


@pytest.mark.parametrize(
    ("owner", "step", "settings"),
    [
        (Path, "guess.in", {}),
        (speculation, "furnish", {}),
        (Path, "requirements.in", {}),
        (Path, "lock.txt", _WITHOUT_DRAFT),
        (builder, "furnish", _WITHOUT_DRAFT),
        (builder.Builder, "_complete", {}),
        (layout.Store, "publish", {}),
    ],
)
def test_nothing_is_deleted_while_a_thread_works_on_it(
    owner: Any,
    step: str,
    settings: dict[str, Any],
    setup: Any,
    run: Run,
    version_in: VersionIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the thread would write to, or publish, a directory that is being deleted."""
    name = "write_text" if owner is Path else step
    real = getattr(owner, name)
    reached, go_on = threading.Event(), threading.Event()
    failures: list[Exception] = []

    def slowly(*args: Any, **options: Any) -> Any:
        if owner is Path and args[0].name != step:
            return real(*args, **options)
        reached.set()
        assert go_on.wait(20)
        try:
            return real(*args, **options)
        except Exception as failure:
            failures.append(failure)
            raise

    async def main() -> None:
        async with Environments(setup.settings(**settings)) as environments:
            await environments.open()
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, slowly)
                asked = asyncio.ensure_future(environments.acquire(spec("gamma")))
                assert await asyncio.to_thread(reached.wait, 20)
                at_work = os.listdir(setup.store("scratch"))
                asked.cancel()
                await asyncio.wait({asked})
                # A failure happens within milliseconds; correct behaviour has no event to wait for.
                with contextlib.suppress(TimeoutError):
                    await until(lambda: os.listdir(setup.store("scratch")) != at_work, 0.5)
                go_on.set()
                await environments.close()
            assert failures == []
            assert os.listdir(setup.store("scratch")) == []
            assert os.listdir(setup.store("claims")) == []
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("gamma")) as environment:
                assert version_in(environment.python, "gamma") == "1.0"

    setup.base.index.add("gamma", "1.0")
    run(main())


def test_an_environment_is_finished_once(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if many find the environment unfinished at the same instant."""
    finished: list[Path] = []
    real = builder.Builder.finish

    async def finish(self: builder.Builder, path: Path, *rest: Any, **options: Any) -> None:
        finished.append(path)
        await real(self, path, *rest, **options)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("alpha")) as found:
                root = found.root
            await (await environments.open()).settled()
        assert root is not None
        (root / manifest.SEAL).unlink()
        monkeypatch.setattr(builder.Builder, "finish", finish)
        async with Environments(setup.settings()) as environments:
            spellings = ("alpha", "Alpha", "ALPHA", "alpha ", " alpha")
            leases = await asyncio.gather(*[environments.acquire(spec(each)) for each in spellings])
            await (await environments.open()).settled()
            for lease in leases:
                lease.release()
        assert finished == [root]

    run(main())


def test_archives_leave_the_configured_free_space(setup: Any, run: Run, tmp_path: Path) -> None:
    """Even without a quota, unused environments are evicted before the disk is full."""
    _packed(setup, run, 2)
    settings = setup.settings(mode="archive", local=tmp_path / "second", min_free_mb=5)

    async def main() -> None:
        async with Environments(settings) as environments:
            open_store = (await environments.open()).open_store
            open_store.evictor._free = lambda: (10 - 3 * len(open_store.store.digests())) * _MB
            for each in (0, 1):
                with await environments.acquire(spec(f"big==1.{each}")) as found:
                    assert found.origin == "archive"
                assert open_store.store.digests() == [found.digest]

    run(main())
