"""``python tests/bench/profile_call.py``: what each stage of a worker's life costs.

CPU microseconds and page faults (of `os.wait4`'s rusage) of real workers of a real
zygote, stage by stage; `docs/benchmarks.md` tells how to read it. Nothing else of the
pool takes part: no supervisor, no HTTP.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "tests")]

from bench import http_load  # noqa: E402
from rich.console import Console  # noqa: E402 - found only now
from rich.table import Table  # noqa: E402

from flashpool.frontends.settings.worker_env import worker_env  # noqa: E402
from flashpool.pool import pickling  # noqa: E402
from flashpool.pool._child import wire  # noqa: E402
from flashpool.pool._child.fork_server import memory_tricks  # noqa: E402
from flashpool.pool._child.serialization import payload  # noqa: E402
from flashpool.pool.config import PoolConfig  # noqa: E402
from flashpool.pool.workers.ends.outcomes import runtime_packages  # noqa: E402

HERE = Path(__file__).parent
LIMIT_S = 300


def noop():
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What each stage of a worker's life costs.")
    parser.add_argument("--python", default=sys.executable, help="the workers' interpreter")
    parser.add_argument("--calls", type=int, default=200, help="workers per stage; default 200")
    parser.add_argument("--pool", action="store_true", help="a call of Pool, not of /execute")
    parser.add_argument(
        "--preload", action="append", default=[], metavar="MODULE", help="may be repeated"
    )
    parser.add_argument(
        "--memory-tricks",
        default=",".join(memory_tricks.ALL),
        metavar="TRICKS",
        help="as FLASHPOOL_MEMORY_TRICKS; default all",
    )
    parser.add_argument(
        "--source", metavar="FILE", help="a file that begins with the function to call"
    )
    return parser.parse_args()


def body(given: argparse.Namespace) -> bytes:
    """The call, as it reaches a worker."""
    if given.pool:
        function = payload.pack(noop, pickling.dumps)
        return payload.pack_call(function, payload.pack(((), {}), pickling.dumps))[0]
    if given.source:
        request = http_load.request(Path(given.source).read_text("utf-8"))
    else:
        request = http_load.NOOP
    return request.partition(b"\r\n\r\n")[2]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    child = Path(wire.__file__).parent
    start = {
        "path": [],
        "app": "",
        "runtime": runtime_packages(),
        "preload": given.preload,
        "varying": [],
        "method": "fork",
        "workdir": "/",
        "log_level": "INFO",
        "grace": 1.0,
        "split_output": False,
        "exit_s": 10.0,
        "exit_answer_s": 0.25,
        "memory_tricks": given.memory_tricks.split(","),
        "example": pickling.example(),
    }
    order = {
        "start": start,
        "body": base64.b64encode(body(given)).decode(),
        "pickled": given.pool,
    }
    done = subprocess.run(
        [given.python, "-I", "-S", str(HERE / "profile_zygote.py"), str(child), str(given.calls)],
        input=json.dumps(order),
        env=PoolConfig(worker_env=worker_env(os.environ, ())).zygote_env(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def floor(python: str) -> tuple[float, float]:
    """CPU microseconds and page faults of the child of a bare interpreter."""
    done = subprocess.run(
        [python, "-I", "-S", str(HERE / "floor.py"), "1"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    _, _, cpu, faults = map(float, done.stdout.split())
    return cpu, faults


def main() -> None:
    given = arguments()
    found = measure(given)
    bare_cpu, bare_faults = floor(given.python)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for heading in ("CPU µs", "page faults", "µs so far", "faults so far"):
        table.add_column(heading, justify="right")
    before_cpu = before_faults = 0.0
    for name, cpu, faults in found["stages"]:
        table.add_row(
            name,
            f"{cpu - before_cpu:+.0f}",
            f"{faults - before_faults:+.0f}",
            f"{cpu:.0f}",
            f"{faults:.0f}",
        )
        before_cpu, before_faults = cpu, faults
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"the zygote's own share of a fork: {found['zygote']:.0f} µs; a bare python -I -S child,"
        f" from fork to exit: {bare_cpu:.0f} µs, {bare_faults:.0f} faults",
        highlight=False,
    )


if __name__ == "__main__":
    main()
