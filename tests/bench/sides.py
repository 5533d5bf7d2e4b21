"""One of two running checkouts: its server, and its pool from the first use on.

Both sides are up all the time and only one of them is loaded. A side is driven from outside,
over HTTP and through `Pool`: what its own tests and tools look like does not matter.
"""

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import http_load
from bench.checkouts import Checkout, Unusable
from bench.lb_server import STOP_S, serving

SCRIPT = Path(__file__).with_name("pool_bursts.py")
#: Seconds after which a pool that has not finished its calls counts as hung.
BURST_S = 60.0


class Bursts:
    """A process of the side's own Python, with a `Pool`: see `pool_bursts`."""

    def __init__(self, checkout: Checkout, workers: int) -> None:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLASHPOOL_", "RUNPOD_"))
        }
        self._log = checkout.folder / "pool.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [checkout.python, SCRIPT, str(workers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**inherited, **checkout.variables()},
                cwd=checkout.folder,
            )

    def wait_ready(self) -> None:
        assert self._answer() == b"ready\n"

    def run(self, count: int) -> float:
        """Make this many calls; return the seconds they took."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % count)
        return float(self._answer())

    def _answer(self) -> bytes:
        out = self.process.stdout
        assert out is not None
        assert select.select([out], [], [], BURST_S)[0], f"no answer after {BURST_S:g} s"
        line = out.readline()
        assert line, f"the pool's process left: {self._log.read_text('utf-8', 'replace')[-2000:]}"
        return line

    def close(self) -> None:
        """Close its input so that the process exits; send SIGKILL if that takes too long."""
        with self.process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Side:
    """``slots`` is how many calls run at once, in its server and in its pool; ``settings`` are
    variables of its server.
    """

    def __init__(
        self,
        checkout: Checkout,
        slots: int,
        stack: contextlib.ExitStack,
        **settings: str,
    ) -> None:
        self.checkout = checkout
        self._slots = slots
        self._stack = stack
        self._bursts: Bursts | None = None
        try:
            self.server = stack.enter_context(
                serving(
                    checkout.folder,
                    checkout.python.with_name("flashpool"),
                    FLASHPOOL_SLOTS=str(slots),
                    # Calls of both sides would wait for the same devices.
                    FLASHPOOL_GPUS_PER_CALL="0",
                    **checkout.variables(),
                    **settings,
                )
            )
        except (AssertionError, OSError) as error:
            raise Unusable(f"{checkout.label} does not start: {error}") from error

    @property
    def address(self) -> http_load.Address:
        return self.server.address

    def last_words(self) -> str:
        """The last output of a server that has exited; empty while the server runs."""
        status = self.server.process.poll()
        if status is None:
            return ""
        told = self.server.log.read_text("utf-8", "replace")[-1000:]
        return f"; the server of {self.checkout.label} has left with {status}: {told}"

    @property
    def bursts(self) -> Bursts:
        if self._bursts is None:
            self._bursts = self._stack.enter_context(_pool(self.checkout, self._slots))
        return self._bursts


@contextlib.contextmanager
def _pool(checkout: Checkout, workers: int) -> Iterator[Bursts]:
    bursts = Bursts(checkout, workers)
    try:
        bursts.wait_ready()
        yield bursts
    finally:
        bursts.close()
