"""Leases, claims, holders, eviction, trash: the store's rules, on a real directory."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs.errors import Tampered
from flashpool.envs.resolving.memo import StoredMemo
from flashpool.envs.store import lease_files, manifest
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.eviction import DiskUse, Evictor, StoreLimits, evict_archives, sweep
from flashpool.envs.store.layout import Store, read_json, write_json
from flashpool.envs.store.lease_files import LeaseTable, Marks
from flashpool.envs.store.liveness import Liveness, parse_holder

A, B = "a" * 40, "b" * 40


class Pod:
    """One process's view of a store."""

    def __init__(self, store: Store, *, stale_s: float = 60, claim_stale_s: float = 60) -> None:
        self.holders = Liveness(
            store.holders, heartbeat_s=0.01, stale_s=stale_s, claim_stale_s=claim_stale_s
        )
        self.holders.beat()
        self.marks = Marks(store, self.holders)
        self.table: LeaseTable[str] = LeaseTable(self.marks, hold_s=0.0)
        self.claims = Claims(store, self.holders)

    def evictor(self, store: Store, **limits: Any) -> Evictor:
        return Evictor(store, self.holders, self.marks, self.table, StoreLimits(**limits))

    def elsewhere(self) -> "Pod":
        """Make it a pod of another machine."""
        self.holders.close()
        self.holders.me = "feed" + self.holders.me
        self.holders.beat()
        return self


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "flashpool")
    made.prepare()
    return made


def environment(store: Store, digest: str, size: int = 1000) -> Path:
    """Create a directory that passes for an environment."""
    path = store.environment(digest)
    (path / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    (path / "data").write_bytes(os.urandom(size))
    files, total = manifest.list_files(path)
    manifest.write_facts(
        path,
        manifest.Facts(
            digest=digest,
            mode="layer",
            python_version="3.12.1",
            base_python="/x",
            site_dirs=(),
            lock=(),
            decisions=(),
            reason="",
            created=1.0,
            bytes=total,
            files=files,
        ),
    )
    return path


def backdate(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_digests_are_forty_hex_digits(store: Store) -> None:
    for bad in ("../x", "A" * 40, "a" * 39, "", "a" * 41):
        with pytest.raises(ValueError, match="not an id"):
            store.environment(bad)


def test_json_is_whole_or_absent(store: Store) -> None:
    path = store.request(A)
    assert read_json(path) is None
    write_json(path, {"x": 1})
    assert read_json(path) == {"x": 1}
    path.write_text('{"x":')
    assert read_json(path) is None


def test_the_first_to_publish_wins(store: Store, tmp_path: Path) -> None:
    for number in (1, 2):
        made = tmp_path / f"made{number}"
        made.mkdir()
        (made / "who").write_text(str(number))
    target = store.environment(A)
    assert store.publish(tmp_path / "made1", target)
    assert not store.publish(tmp_path / "made2", target)
    assert (target / "who").read_text() == "1"
    assert store.publish(tmp_path / "made2", target, replace=True)
    assert (target / "who").read_text() == "2"
    assert store.empty_trash() == 1


def test_a_dead_process_of_this_host_is_known_at_once(store: Store) -> None:
    pod = Pod(store)
    mine = parse_holder(pod.holders.me)
    assert mine is not None
    gone = f"{mine.host}-{mine.pid}-{int(mine.start) + 1}-00000000"
    assert pod.holders.dead(gone)
    assert not pod.holders.dead(pod.holders.me)
    assert not Pod(store).holders.dead(pod.holders.me)
    assert pod.holders.dead("nonsense")


def test_a_holder_on_another_host_is_dead_only_after_long_silence(store: Store) -> None:
    here, there = Pod(store), Pod(store).elsewhere()
    assert not here.holders.dead(there.holders.me)
    backdate(store.holders / there.holders.me, 120)
    assert not here.holders.dead(there.holders.me), (
        "one look is not enough: the clock may have jumped"
    )
    deadline = time.monotonic() + 30
    while not here.holders.dead(there.holders.me):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    there.holders.beat()
    assert not here.holders.dead(there.holders.me)


def test_a_stopped_process_loses_its_claim_but_not_its_leases(store: Store) -> None:
    here, stopped = Pod(store, claim_stale_s=5), Pod(store)
    backdate(store.holders / stopped.holders.me, 30)
    here.holders.stalled(stopped.holders.me)
    time.sleep(0.05)
    assert here.holders.stalled(stopped.holders.me)
    assert not here.holders.dead(stopped.holders.me)


def test_a_claim_has_one_owner_until_it_is_released(store: Store) -> None:
    one, two = Pod(store), Pod(store)
    assert one.claims.take(A)
    assert one.claims.take(A), "one's own claim is no obstacle"
    assert not two.claims.take(A)
    assert two.claims.owner(A) == one.holders.me
    two.claims.release(A)
    assert one.claims.owner(A) == one.holders.me, "only the owner gives it back"
    one.claims.release(A)
    assert two.claims.take(A)


def test_a_dead_builders_claim_can_be_taken(store: Store) -> None:
    me = parse_holder(Pod(store).holders.me)
    assert me is not None
    store.claim(A).symlink_to(f"{me.host}-{me.pid}-1-00000000")
    pods = [Pod(store) for _ in range(8)]
    got = _race(*[partial(pod.claims.take, A) for pod in pods])
    # More than one pod may succeed (both moved a claim away); that only costs a second build.
    assert any(got)
    assert store.claim(A).is_symlink()


def test_leased_environments_are_not_evicted(store: Store) -> None:
    environment(store, A)
    environment(store, B)
    here, there = Pod(store), Pod(store)
    there.marks.put(A)
    evictor = here.evictor(store)
    assert not evictor.evict(A)
    assert evictor.evict(B)
    assert store.digests() == [A]
    there.marks.take_away(A)
    assert evictor.evict(A)
    assert os.listdir(store.trash) == []


def test_lease_marks_of_dead_holders_are_ignored(store: Store) -> None:
    environment(store, A)
    pod = Pod(store)
    me = parse_holder(pod.holders.me)
    assert me is not None
    folder = store.leases(A)
    folder.mkdir()
    (folder / f"{me.host}-{me.pid}-1-00000000").touch()
    assert pod.marks.users(A) == []
    assert pod.evictor(store).evict(A)


def test_own_leases_prevent_eviction_and_idle_ones_do_not(store: Store) -> None:
    environment(store, A)
    pod = Pod(store)
    with pod.table.pinning(A):
        pod.marks.put(A)
        assert not pod.evictor(store).evict(A), "being looked at"
        pod.table.enter(A, "x")
    assert not pod.evictor(store).evict(A)
    pod.table.give_back(A)
    assert pod.table.take(A) == "x"
    pod.table.give_back(A)
    assert pod.evictor(store).evict(A)
    assert pod.table.take(A) is None


def test_sweeping_releases_idle_leases_after_the_hold(store: Store) -> None:
    pod = Pod(store)
    pod.marks.put(A)
    pod.table.enter(A, "x")
    pod.table.sweep()
    assert pod.table.held() == {A: 1}
    pod.table.give_back(A)
    time.sleep(0.001)
    pod.table.sweep()
    assert pod.table.held() == {}
    assert pod.marks.users(A) == []


def _race(*actions: Callable[[], bool]) -> list[bool]:
    """Run the actions at the same instant; return the result of each."""
    barrier = threading.Barrier(len(actions))
    said = [False] * len(actions)

    def act(number: int) -> None:
        barrier.wait()
        said[number] = actions[number]()

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_user_and_evictor_never_both_win(store: Store) -> None:
    """Dekker's algorithm: either the user finds the environment and keeps it, or it is evicted."""
    user, other = Pod(store), Pod(store)

    def use() -> bool:
        user.marks.put(A)
        return store.environment(A).is_dir()

    for _ in range(150):
        environment(store, A, size=10)
        there, evicted = _race(use, lambda: other.evictor(store).evict(A))
        assert there != evicted
        assert there == store.environment(A).is_dir()
        user.marks.take_away(A)
        other.evictor(store).evict(A)


def test_eviction_by_quota_takes_the_least_recently_used(store: Store) -> None:
    digests = [character * 40 for character in "abcdef"]
    pod = Pod(store)
    for age, digest in enumerate(digests):
        environment(store, digest, size=200_000)
        pod.marks.used(digest)
        backdate(store.leases(digest) / "used", 1000 - age)
    pod.marks.used(digests[0])
    in_use = Pod(store)
    in_use.marks.put(digests[1])
    backdate(store.leases(digests[1]) / "used", 5000)
    evictor = pod.evictor(store, quota=1_000_000)
    assert evictor.over(evictor.usage())
    done = evictor.run()
    assert not evictor.over(evictor.usage())
    assert done.digests == tuple(digests[2:4])
    assert done.wanted == (digests[1],)
    assert store.digests() == [digests[0], digests[1], digests[4], digests[5]]


def test_eviction_by_age(store: Store) -> None:
    pod = Pod(store)
    for digest, age in ((A, 100), (B, 1)):
        environment(store, digest)
        pod.marks.used(digest)
        backdate(store.leases(digest) / "used", age)
    assert pod.evictor(store, max_age_s=50).run().digests == (A,)


def test_sweeping_up_after_the_dead(store: Store) -> None:
    pod = Pod(store)
    me = parse_holder(pod.holders.me)
    assert me is not None
    dead = f"{me.host}-{me.pid}-1-00000000"
    (store.holders / dead).touch()
    (store.scratch_root / f"{dead}.0000").mkdir()
    (store.scratch_root / f"{pod.holders.me}.0000").mkdir()
    (store.trash / "x").mkdir()
    store.claim(A).symlink_to(dead)
    store.claim(B).symlink_to(pod.holders.me)
    sweep(store, pod.holders)
    assert os.listdir(store.holders) == [pod.holders.me]
    assert os.listdir(store.scratch_root) == [f"{pod.holders.me}.0000"]
    assert os.listdir(store.trash) == []
    assert [path.name for path, _ in store.claims()] == [B]


def test_bytes_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a", tmp_path / "b")
    alone = DiskUse().add(tmp_path)[0]
    (tmp_path / "b").unlink()
    assert DiskUse().add(tmp_path)[0] == alone


@pytest.mark.parametrize("seen", ["scratch", "envs"])
def test_a_directory_moved_while_bytes_are_counted_counts_once(
    seen: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publish just after scratch was measured; evict just after the environments were."""
    pod = Pod(store)
    path = environment(store, A, 100_000)
    before = pod.evictor(store).measure().total
    scratch, trash = store.new_scratch(pod.holders.me), store.trash / A
    move = (scratch, path) if seen == "scratch" else (path, trash)
    if seen == "scratch":
        path.rename(scratch)
    real = DiskUse.add

    def add(self: DiskUse, root: Path) -> tuple[int, int]:
        found = real(self, root)
        if root.name == seen:
            move[0].rename(move[1])
        return found

    monkeypatch.setattr(DiskUse, "add", add)
    assert pod.evictor(store).measure().total == before
    assert move[1].exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "data").write_bytes(b"short"),
        lambda path: (path / "data").unlink(),
        lambda path: (path / manifest.FILES).unlink(),
    ],
)
def test_damage_is_found_by_size(store: Store, damage: Callable[[Path], Any]) -> None:
    path = environment(store, A)
    manifest.check_sizes(path)
    damage(path)
    with pytest.raises(Tampered):
        manifest.check_sizes(path)


def _same_size(path: Path) -> None:
    (path / "data").write_bytes(os.urandom(1000))


@pytest.mark.parametrize(
    "tamper",
    [
        _same_size,
        lambda path: (path / "lib" / "extra.py").write_text("import os"),
        lambda path: (path / "__pycache__").mkdir() or (path / "__pycache__" / "x.pyc").touch(),
        lambda path: manifest.seal(path, b"another key"),
        lambda path: manifest.seal(path, None),
        lambda path: (path / manifest.SEAL).unlink(),
        lambda path: (path / manifest.FACTS).write_text("{}"),
    ],
)
def test_tampering_is_found_with_a_key(store: Store, tamper: Callable[[Path], Any]) -> None:
    path = environment(store, A)
    manifest.seal(path, b"key")
    manifest.check_seal(path, b"key")
    tamper(path)
    with pytest.raises(Tampered):
        manifest.check_seal(path, b"key")


def test_an_eviction_removes_no_lease_mark_made_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting takes seconds; meanwhile another process may publish and lease the same digest."""
    environment(store, A)
    here, there = Pod(store), Pod(store)
    delete = store.empty_trash

    def meanwhile() -> int:
        there.marks.put(A)
        environment(store, A)
        return delete()

    monkeypatch.setattr(store, "empty_trash", meanwhile)
    assert here.evictor(store).evict(A)
    monkeypatch.setattr(store, "empty_trash", delete)
    assert not here.evictor(store).evict(A)
    there.marks.take_away(A)
    assert here.evictor(store).evict(A)
    assert os.listdir(store.root / "leases") == []


def test_an_evictor_that_was_stopped_restores_a_leased_environment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evictor looks for leases, then is stopped for longer than a user waits for an evictor."""
    monkeypatch.setattr(lease_files, "_INTENT_LIMIT_S", 0.05)
    path = environment(store, A)
    here, there = Pod(store), Pod(store)
    looked = here.marks.users

    def stopped(digest: str) -> list[str]:
        found = looked(digest)
        if store.environment(A).is_dir():
            there.marks.put(A)
        return found

    monkeypatch.setattr(here.marks, "users", stopped)
    assert not here.evictor(store).evict(A)
    manifest.check_sizes(path)
    assert os.listdir(store.scratch_root) == os.listdir(store.trash) == []


def test_a_lost_environment_is_not_leased_until_it_is_back(store: Store) -> None:
    pod = Pod(store)
    pod.marks.put(A)
    pod.table.enter(A, "before")
    pod.table.forget_lost(lambda _digest: True)
    assert pod.table.take(A) == "before"
    pod.table.forget_lost(lambda _digest: False)
    assert pod.table.take(A) is None
    assert pod.table.enter(A, "after") == "after"
    assert pod.table.held() == {A: 3}
    for _ in range(3):
        pod.table.give_back(A)
    assert pod.table.held() == {A: 0}


def test_a_lease_may_be_given_back_after_the_table_was_cleared(store: Store) -> None:
    pod = Pod(store)
    pod.marks.put(A)
    pod.table.enter(A, "x")
    pod.table.clear()
    pod.table.give_back(A)
    assert pod.table.held() == {}


def test_a_slow_volume_does_not_delay_leases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is taken on the event loop, while removing a mark from a volume may take long."""
    pod = Pod(store)
    for digest in (A, B):
        pod.marks.put(digest)
        pod.table.enter(digest, digest)
    pod.table.give_back(A)
    slow, arrived = threading.Event(), threading.Event()
    real = pod.marks.take_away

    def take_away(digest: str) -> None:
        arrived.set()
        assert slow.wait(10)
        real(digest)

    monkeypatch.setattr(pod.marks, "take_away", take_away)
    retiring = threading.Thread(target=pod.table.retire, args=(A,))
    retiring.start()
    assert arrived.wait(10)
    assert pod.table.take(A) is None
    assert pod.table.take(B) == B
    marked = threading.Thread(target=lambda: _mark(pod))
    marked.start()
    marked.join(0.05)
    slow.set()
    for thread in (retiring, marked):
        thread.join(10)
    assert pod.marks.users(A) == [pod.holders.me], "the new mark came after the old one went"


def _mark(pod: Pod) -> None:
    with pod.table.pinning(A):
        pod.marks.put(A)


def test_a_malformed_claim_can_be_taken(store: Store) -> None:
    """A copied volume, or another writer, may leave a file or directory in place of a claim."""
    pod = Pod(store)
    store.claim(A).write_text("a file")
    store.claim(B).mkdir()
    assert pod.claims.take(A)
    assert pod.claims.take(B)
    assert pod.claims.owner(A) == pod.claims.owner(B) == pod.holders.me


def test_malformed_json_reads_as_absent(store: Store) -> None:
    path = store.request(A)
    path.write_text("[" * 200_000)
    assert read_json(path) is None
    path.write_bytes(b'{"x": "\xff"}')
    assert read_json(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": "many"},
        {"bytes": -1},
        {"files": None},
        {"created": "today"},
        {"python_version": 3},
        {"python_version": "3/../../../x"},
        {"python_version": "3.12/../x"},
        {"mode": "other"},
        {"site_dirs": "/x"},
        {"site_dirs": [1]},
        {"lock": [None]},
        {"reason": 1},
        {"base_python": {}},
        {"decisions": [1]},
        {"decisions": [{"name": 1, "version": "", "where": "base", "why": ""}]},
        {"bytes": True},
        {"bytes": 10**40},
        {"files": 1 << 61},
        {"created": 10**400},
        {"python_version": "3.1\u0662"},
        {"python_version": "3.1" + "2" * 200},
        {"site_dirs": ["/x\0y"]},
        {"base_python": "/x\0y"},
    ],
)
def test_malformed_facts_read_as_absent(change: dict[str, Any], store: Store) -> None:
    path = environment(store, A)
    assert manifest.read_facts(path) is not None
    write_json(path / manifest.FACTS, {**(read_json(path / manifest.FACTS) or {}), **change})
    assert manifest.read_facts(path) is None


def test_a_pipe_does_not_block_the_seal_check(store: Store) -> None:
    """Opening a pipe to read it would block for ever."""
    path = environment(store, A)
    os.mkfifo(path / "lib" / "pipe")
    done: list[str] = []

    def check() -> None:
        manifest.seal(path, b"key")
        (path / "lib" / "pipe").unlink()
        os.mkfifo(path / "lib" / "other")
        with pytest.raises(Tampered):
            manifest.check_seal(path, b"key")
        done.append("checked")

    thread = threading.Thread(target=check, daemon=True)
    thread.start()
    thread.join(5)
    assert done == ["checked"]


@pytest.mark.parametrize("key", [b"key", None])
def test_a_seal_of_an_earlier_version_is_accepted(key: bytes | None, store: Store) -> None:
    """Both versions share a volume. Without a key, imports could add bytecode there."""
    path = environment(store, A)
    manifest.seal(path, key)
    content = read_json(path / manifest.SEAL) or {}
    del content["unlike"], content["mac"]
    write_json(path / manifest.SEAL, {**content, "mac": manifest.sign(content, key)})
    manifest.check_seal(path, key)
    (path / "__pycache__").mkdir()
    (path / "__pycache__" / "x.pyc").touch()
    if key:
        with pytest.raises(Tampered):
            manifest.check_seal(path, key)
    else:
        manifest.check_seal(path, key)


@pytest.mark.parametrize("files", [["x"], "x", 7, [["a", "b", "c"]], None])
def test_a_malformed_seal_counts_as_tampering(files: Any, store: Store) -> None:
    path = environment(store, A)
    write_json(path / manifest.SEAL, {"files": files, "mac": ""})
    with pytest.raises(Tampered):
        manifest.check_seal(path, None)


def test_leftovers_of_a_dead_writer_are_swept(store: Store) -> None:
    """Recent files stay: their writer may be alive."""
    pod = Pod(store)
    (store.root / "archives").mkdir()
    left = [
        store.request(A).with_name(f".{A}.json.0123abcd"),
        store.preloads(A).with_name(f".{A}.json.0123abcd"),
        store.archive_manifest(A).with_name(f".{A}.json.0123abcd"),
        store.archive(A),
    ]
    kept = [store.request(A), store.archive(B), store.archive_manifest(B)]
    for path in (*left, *kept):
        path.write_text("{}")
    sweep(store, pod.holders)
    assert all(path.exists() for path in left)
    for path in (*left, *kept):
        backdate(path, 4000)
    sweep(store, pod.holders)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_key_signs_the_memo_of_a_request(store: Store) -> None:
    """Otherwise anyone who can write to the volume chooses which environment a request gets."""
    signed, plain = StoredMemo(store, 60, key=b"key"), StoredMemo(store, 60)
    signed.put(A, B, ("numpy",))
    found = signed.get(A)
    assert found is not None
    assert (found.digest, found.fresh) == (B, True)
    assert plain.get(A) is not None
    store.request(B).write_bytes(store.request(A).read_bytes())
    assert signed.get(B) is None, "it was signed for another request"
    write_json(store.request(A), {**(read_json(store.request(A)) or {}), "digest": A})
    assert signed.get(A) is None
    plain.put(A, B, ("numpy",))
    assert signed.get(A) is None


def test_eviction_by_free_space(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evict no more than needed: each evicted environment frees its bytes."""
    digests = [character * 40 for character in "abc"]
    pod = Pod(store)
    for age, digest in enumerate(digests):
        environment(store, digest, size=1_000_000)
        pod.marks.used(digest)
        backdate(store.leases(digest) / "used", 1000 - age)
    evictor = pod.evictor(store, min_free=5_000_000)
    free = {3: 3_500_000, 2: 4_500_000, 1: 5_500_000, 0: 6_500_000}
    monkeypatch.setattr(evictor, "_free", lambda: free[len(store.digests())])
    assert evictor.run().digests == tuple(digests[:2])
    assert evictor.run().digests == ()


@pytest.mark.parametrize("late", [False, True])
def test_deletion_follows_no_link_on_the_volume(late: bool, store: Store, tmp_path: Path) -> None:
    """Otherwise a writer on the volume could make a server delete files of its own machine."""
    pod = Pod(store)
    victim = tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    for name in ("file", ".hidden", "folder/file"):
        (victim / name).write_text("precious")
        backdate(victim / name, 10_000)
    (victim / "link").symlink_to("nothing")
    for name in ("trash", "scratch", "holders", "claims", "requests", "preloads", "leases"):
        folder = store.root / name
        shutil.rmtree(folder)
        folder.symlink_to(victim)
    (store.root / "archives").symlink_to(victim)
    if late:
        (store.root / "leases").unlink()
        (store.root / "leases").mkdir()
        store.leases(A).symlink_to(victim)
        environment(store, A)
    else:
        store.prepare()
        assert not (store.root / "trash").is_symlink()
    before = sorted(victim.rglob("*"))
    pod.marks.users(A)
    sweep(store, pod.holders)
    pod.evictor(store, quota=1).run()
    evict_archives(store, 1)
    assert set(before) <= set(victim.rglob("*"))


def test_link_targets_are_not_counted_and_a_linked_cache_is_replaced(
    store: Store, tmp_path: Path
) -> None:
    """Otherwise the whole machine would be counted, and uv would empty a linked directory."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(bytes(1 << 20))
    (store.root / "cache").symlink_to(victim)
    (store.root / "more").symlink_to(victim)
    assert Pod(store).evictor(store).measure().total < 1 << 20
    store.prepare()
    assert not store.cache.is_symlink()
    assert (victim / "file").exists()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_read(kind: str, store: Store) -> None:
    """A pipe would block for ever, and a device would fill the memory."""
    found: list[object] = []

    def put(path: Path) -> Path:
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/zero") if kind == "device" else os.mkfifo(path)
        return path

    def read() -> None:
        found.append(read_json(put(store.request(A))))
        path = environment(store, A)
        put(path / manifest.FILES)
        with pytest.raises(Tampered):
            manifest.check_sizes(path)
        found.append("checked")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert found == [None, "checked"]


def test_an_unreadable_file_counts_as_tampering(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment is then rebuilt; a plain disk error would fail every call."""
    path = environment(store, A)
    manifest.seal(path, b"key")

    def refuse(_path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "_hash_file", refuse)
    with pytest.raises(Tampered):
        manifest.check_seal(path, b"key")


@pytest.mark.parametrize("name", ["a\x85b", "a\u2028b", "a\x0cb", "a\tb", "a\nb", "a\udcffb"])
def test_names_with_odd_characters_are_listed_and_sealed(name: str, store: Store) -> None:
    path = environment(store, A)
    (path / name).write_text("x")
    manifest.list_files(path)
    manifest.check_sizes(path)
    manifest.seal(path, b"key")
    manifest.check_seal(path, b"key")


def test_age_counts_on_the_file_system_s_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's clock may jump. Old environments are evicted although nothing is built."""
    pod = Pod(store)
    for digest, age in ((A, 100), (B, 1)):
        environment(store, digest)
        pod.marks.used(digest)
        backdate(store.leases(digest) / "used", age)
    evictor = pod.evictor(store, max_age_s=50)
    then = time.time() + 10_000
    monkeypatch.setattr(time, "time", lambda: then)
    assert evictor.evict_aged() == [A]
    assert store.digests() == [B]
    assert pod.evictor(store).evict_aged() == []


def test_marks_of_missing_environments_are_swept(store: Store) -> None:
    pod, other = Pod(store), Pod(store)
    c = "c" * 40
    environment(store, c)
    for digest in (A, B, c):
        pod.marks.put(digest)
        pod.marks.take_away(digest)
        backdate(store.leases(digest) / "used", 4000)
    other.marks.put(B)
    backdate(store.leases(B) / "used", 4000)
    sweep(store, pod.holders)
    assert sorted(os.listdir(store.root / "leases")) == [B, c]
    assert other.marks.users(B) == [other.holders.me]
