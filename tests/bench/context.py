"""What rows measure with: rounds, a server that starts on first use, the references."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.lb_server import LbServer, serving

HERE = Path(__file__).parent
#: A reference that takes longer is broken.
PEER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Bare forks: see `floor`."""

    rate: float
    latency_s: float
    cpu_us: float
    faults: float


class Bench:
    """One run."""

    def __init__(
        self, rounds: int, folder: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
    ) -> None:
        self.rounds = rounds
        self.folder = folder
        self.cores = len(os.sched_getaffinity(0))
        self._say = say
        self._stack = stack
        self._server: LbServer | None = None
        self._plain: tuple[str, int] | None = None

    @property
    def server(self) -> LbServer:
        """With default settings; the same for all rows."""
        if self._server is None:
            self._server = self._stack.enter_context(serving(self.folder))
        return self._server

    @property
    def plain(self) -> tuple[str, int]:
        """The address of a FastAPI route that does nothing: see `plain_server`."""
        if self._plain is None:
            process = subprocess.Popen(
                [sys.executable, "plain_server.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=HERE,
            )
            # Leaving the context closes its input, which ends the server.
            self._stack.enter_context(process)
            assert process.stdout is not None
            self._plain = "127.0.0.1", int(process.stdout.readline())
        return self._plain

    def turns(self, name: str) -> Iterable[int]:
        """The rounds' numbers."""
        for number in range(self.rounds):
            self._say(f"{name}: round {number + 1} of {self.rounds}")
            yield number

    def floor(self, seconds: float) -> Floor:
        """Measure bare forks for this long."""
        rate, latency_s, cpu_us, faults = self._figures(["-I", "-S", "floor.py", str(seconds)])
        return Floor(rate=rate, latency_s=latency_s, cpu_us=cpu_us, faults=faults)

    def peer(self, name: str, count: int) -> float:
        """Calls a second through one library: see `peers`."""
        return self._figures(["peers.py", name, str(count), str(self.cores)])[0]

    def _figures(self, arguments: list[str]) -> list[float]:
        """Run a script of this folder; the numbers it prints. All it started ends with it."""
        with subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=PEER_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{arguments} left with {process.returncode}"
        return [float(figure) for figure in output.split()]


def in_turn(number: int, *measures: Callable[[], None]) -> None:
    """Run all functions, beginning with another one each round."""
    first = number % len(measures)
    for measure in (*measures[first:], *measures[:first]):
        measure()
