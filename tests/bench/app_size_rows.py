"""Rows of what a deployed app takes: memory, and the time of an unpacking, a start and a process of its own."""

import select
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from bench import app_server, http_load
from bench.app_server import NOOP, REFERENCE, AppServer, get
from bench.context import HERE, Bench, in_turn
from bench.figures import Row, compared

from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack

#: Requests after which memory is measured.
REQUESTS = 2000
STREAMS = 16
STREAM_SIZE = 50_000_000
#: Bytes that a slow reader reads at once, and seconds between two reads.
SIP, PAUSE_S = 65_536, 0.002
LOAD_S = 2.0
#: Packages of this interpreter that make an archive as large as one of `flash build`.
PACKED = ("fastapi", "starlette", "pydantic", "runpod", "aiohttp", "uvicorn", "click", "rich")
UNPACKING = ArchiveLimits(max_mb=4000, max_files=100_000, max_ratio=1000)
#: Forks as `floor.py` does, in a process with the zygote's imports.
_FORKS = (
    "import runpy, sys; import asyncio, fastapi, fastapi.responses, pydantic, uvicorn; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
)


def worker_memory(bench: Bench) -> Row:
    """Resident memory of the process that runs the routes."""
    found: dict[AppServer, list[float]] = {}
    for _ in bench.turns("memory of an app's worker"):
        with app_server.both(bench) as (ours, plain):
            for server in (ours, plain):
                http_load.saturate(server.address, NOOP, 16, calls=REQUESTS)
            found.setdefault(ours, []).append(_resident_mb(ours.worker()))
            found.setdefault(plain, []).append(_resident_mb(plain.worker()))
    values = list(found.values())
    return compared(
        "resident memory of an app's worker",
        "MB",
        [one for each in values[::2] for one in each],
        REFERENCE,
        [one for each in values[1::2] for one in each],
        at_most=1.1,
    )


def server_memory(bench: Bench) -> Row:
    """The server's resident memory while bodies stream through it both ways to slow readers."""
    most: list[float] = []
    idle: list[float] = []
    with app_server.ours(bench, FLASHPOOL_MAX_BODY_MB="64") as server:
        http_load.saturate(server.address, NOOP, 16, calls=REQUESTS)
        for _ in bench.turns("memory of an app's server"):
            idle.append(_resident_mb(server.process.pid))
            most.append(_streaming_mb(server))
    return compared(
        f"resident memory of the server, {STREAMS} streams of {STREAM_SIZE // 10**6} MB each way",
        "MB",
        most,
        "the same server, idle",
        idle,
        at_most=1.2,
    )


def _streaming_mb(server: AppServer) -> float:
    """Return the server's peak memory meanwhile."""
    done = threading.Event()
    most = 0.0

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, _resident_mb(server.process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        _stream(server)
    finally:
        done.set()
        watching.join()
    return most


def _stream(server: AppServer) -> None:
    head = b"POST /both-ways HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n" % STREAM_SIZE
    piece = memoryview(bytes(1 << 20))
    with http_load.connected(server.address, STREAMS) as found:
        left = {one.sock: STREAM_SIZE for one in found}
        wanted = dict(left)
        for one in found:
            one.sock.sendall(head)
            one.sock.setblocking(False)
        while wanted:
            readable, writable, _ = select.select(list(wanted), list(left), [], 60)
            assert readable or writable, "no stream goes on"
            for sock in writable:
                left[sock] -= sock.send(piece[: left[sock]])
                if not left[sock]:
                    del left[sock]
            for sock in readable:
                received = sock.recv(SIP)
                if wanted[sock] == STREAM_SIZE:
                    assert received.startswith(b"HTTP/1.1 200"), received[:300]
                assert received, "an answer was cut"
                wanted[sock] -= len(received)
                if wanted[sock] <= 0:  # the head of the answer counts as well
                    del wanted[sock]
            time.sleep(PAUSE_S)


def isolation(bench: Bench) -> Row:
    """A request in a process of its own, beside a bare fork of a process as large as its zygote."""
    medians: list[float] = []
    forks: list[float] = []

    def fork() -> None:
        done = subprocess.run(
            [sys.executable, "-c", _FORKS, str(HERE / "floor.py"), "1"],
            capture_output=True,
            check=True,
            timeout=60,
        )
        forks.append(float(done.stdout.split()[1]) * 1e3)

    with app_server.ours(bench, FLASHPOOL_ROUTE_ISOLATION="GET /isolated=call") as server:

        def ask() -> None:
            load = http_load.one_by_one(server.address, get("/isolated"), LOAD_S)
            medians.append(statistics.median(load.latencies) * 1e3)

        server.wait_preloaded()
        for number in bench.turns("isolation: call"):
            in_turn(number, ask, fork)
    return compared(
        "median of a request in a process of its own",
        "ms",
        medians,
        "a bare fork of a process that has imported the same",
        forks,
        at_most=7,
    )


def unpacking(bench: Bench) -> Row:
    """Unpacking an archive into an app, beside `tar` with the same archive."""
    archive = bench.folder / "packed.tar.gz"
    _pack(archive)
    took: dict[str, list[float]] = {"ours": [], "tar": []}
    number = 0

    def ours() -> None:
        root = bench.folder / f"apps-{number}"
        began = time.perf_counter()
        unpack(archive, AppStore(root), UNPACKING, threading.Event()).release()
        took["ours"].append((time.perf_counter() - began) * 1e3)

    def tar() -> None:
        target = bench.folder / f"tar-{number}"
        target.mkdir()
        began = time.perf_counter()
        subprocess.run(["tar", "xzf", archive, "-C", target], check=True, timeout=60)
        took["tar"].append((time.perf_counter() - began) * 1e3)

    for number in bench.turns("unpacking"):
        in_turn(number, ours, tar)
    return compared(
        "unpacking an artifact",
        "ms",
        took["ours"],
        "tar xzf of the same",
        took["tar"],
        at_most=2,
        detail={"archive MB": archive.stat().st_size / 1e6},
    )


def _pack(archive: Path) -> None:
    import fastapi

    installed = Path(fastapi.__file__).parents[1]
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for name in PACKED:
            tar.add(installed / name, f"./{name}")


def start(bench: Bench) -> Row:
    """The time from the start to the first 200."""
    times: dict[str, list[float]] = {"ours": [], "plain": []}

    def ours() -> None:
        with app_server.ours(bench) as server:
            times["ours"].append(server.start_s * 1e3)

    def plain() -> None:
        with app_server.plain(bench) as server:
            times["plain"].append(server.start_s * 1e3)

    for number in bench.turns("the start of an app"):
        in_turn(number, ours, plain)
    return compared(
        "a server of an app, from its start to /ping 200",
        "ms",
        times["ours"],
        f"{REFERENCE}, to its first 200",
        times["plain"],
        at_most=1.5,
    )


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"no VmRSS of {pid}")
