"""The workers' processes, started as the platform starts a container.

A worker gets only the variables of its pod, a home without RunPod's configuration, and a
session of its own, so that `Pods.close` finds what it leaves behind.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

#: How long a worker may take to exit when everything is stopped.
LEAVE_S = 30.0


class Worker:
    """One process; `id` is its RUNPOD_POD_ID."""

    def __init__(
        self, id_: str, endpoint: str, command: Sequence[str], environ: dict[str, str], log: Path
    ) -> None:
        self.id = id_
        self.endpoint = endpoint
        self._log = log
        self._stamped: list[str] = []
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=log.parent,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<worker {self.id} of {self.endpoint}, process {self.process.pid}>"

    def output(self) -> str:
        """Return everything that it has written."""
        return self._log.read_text(errors="replace")

    def last_words(self) -> str:
        lines = [line for line in self.output().splitlines() if "Heartbeat Sent" not in line]
        return "\n".join(lines[-40:])

    def stamped(self) -> list[str]:
        """Return its lines as the platform shows them, each with the time when it was
        first seen.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        lines = self.output().splitlines()
        self._stamped += [f"{now} {line}" for line in lines[len(self._stamped) :]]
        return self._stamped

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM to this process alone, as a container's first process gets it."""
        if self.running:
            self.process.terminate()

    def wait(self, seconds: float = LEAVE_S) -> int:
        """Wait for its exit status."""
        return self.process.wait(seconds)

    def stop(self, seconds: float = LEAVE_S) -> int:
        self.terminate()
        return self.wait(seconds)

    def sweep(self, seconds: float) -> bool:
        """Send SIGTERM, and after a while SIGKILL to it and to all processes left in its session.

        Return whether it exited by itself.
        """
        self.terminate()
        left = True
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            left = False
            self.process.kill()
        # The pid stays the session's id while any process is in the session.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        return left


class Pods:
    """All workers of one stand-in."""

    def __init__(
        self,
        pod_env: Callable[[str, str], Mapping[str, str]],
        command: Sequence[str] | None,
        variables: Mapping[str, str],
    ) -> None:
        self._pod_env = pod_env
        self._command = command
        self._variables = variables
        self._folder = Path(tempfile.mkdtemp(prefix="cloud-"))
        self.workers: list[Worker] = []
        self._named = 0

    def add_variables(self, variables: Mapping[str, str]) -> None:
        """Add variables to the environment of later workers."""
        self._variables = {**self._variables, **variables}

    def name(self) -> str:
        self._named += 1
        return f"pod{self._named}"

    def start(self, endpoint: str, command: Sequence[str], variables: Mapping[str, str]) -> Worker:
        id_ = self.name()
        folder = self._folder / id_
        folder.mkdir()
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            # Images set this variable, because the log is read while it is written.
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(folder),
            **self._pod_env(endpoint, id_),
            **self._variables,
            **variables,
        }
        worker = Worker(id_, endpoint, command, environ, folder / "container.log")
        self.workers.append(worker)
        return worker

    def provision(self, endpoint: str, variables: Mapping[str, str]) -> None:
        """Start a worker for a new endpoint, if the test has given a command."""
        if self._command:
            self.start(endpoint, self._command, variables)

    def remove(self, endpoint: str) -> None:
        for worker in self.workers:
            if worker.endpoint == endpoint:
                worker.terminate()

    def stop(self, worker: str) -> None:
        """Stop a worker that has requested this: `stopPod` in a job-done."""
        for one in self.workers:
            if one.id == worker:
                one.terminate()

    def initializing(self, endpoint: str, ready: set[str]) -> int:
        return sum(
            one.endpoint == endpoint and one.id not in ready and one.running for one in self.workers
        )

    def log(self, worker: str) -> list[str]:
        return [line for one in self.workers if one.id == worker for line in one.stamped()]

    def close(self) -> None:
        """Stop all workers; then fail if one had to be killed."""
        for worker in self.workers:
            worker.terminate()
        end = time.monotonic() + LEAVE_S
        stuck = [one for one in self.workers if not one.sweep(max(0.0, end - time.monotonic()))]
        told = [f"{one!r} did not leave:\n{one.last_words()}" for one in stuck]
        shutil.rmtree(self._folder, ignore_errors=True)
        assert not told, "\n".join(told)
