"""Runs commands so that none of their processes outlives this process.

    we --stdin pipe--> sh guard --fork--> the command (and all that it starts)
                          `-- a reader of that pipe: end of file -> KILL the group

Every command gets a session of its own. A command that is cancelled or times out is killed as a
group. When this process dies, even by SIGKILL, the kernel closes the pipe and the guard kills the
group. A death signal set with prctl would need code between fork and exec in a process that has
threads, and follows the thread rather than the process; the shell costs about a millisecond.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from flashpool.pool._child import processes, shortage

from .concurrency.cancellation import (
    run_in_thread_or_undo,
    wait_for_shielded,
    wait_shielded,
)
from .concurrency.disk_hangs import DiskHangs
from .concurrency.disk_threads import disk_in_use
from .errors import MachineShort
from .handed_over import HandedOver

__all__ = ["Finished", "run"]

_log = logging.getLogger(__name__)

#: Most lines that are kept of a command's stderr; most characters of a line, bytes of stdout.
KEPT_LINES: Final = 400
MAX_LINE: Final = 4000
MAX_STDOUT: Final = 32 * 1024 * 1024

#: The guard's exit status if it cannot enter the working directory.
_NO_FOLDER: Final = 113
#: How long a killed command may take to exit: usually, and if the disk is known to hang.
_EXIT_S: Final = 10.0
_HANGING_EXIT_S: Final = 0.5

#: Descriptor 3 is the pipe from this process. The command's own stdin is empty.
_GUARD: Final = """
exec 3<&0 0</dev/null
[ "$1" = 0 ] || ulimit -S -n "$1" 2>/dev/null; shift
cd "$1" 2>/dev/null || exit 113; shift
"$@" 3<&- & child=$!
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 & reader=$!
exec 3<&-
wait $child; code=$?
{ kill -KILL $reader; wait $reader; } 2>/dev/null
exit $code
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


async def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    limit_s: float | None = None,
    on_line: Callable[[str], None] | None = None,
    secret: bytes | None = None,
) -> Finished:
    """Run to the end; on a time limit (TimeoutError) or cancellation kill the whole group.

    The same happens if the disk that this task works on hangs (`DiskHangs`). The command reads a
    ``secret`` at the path that replaces `handed_over.SECRET` in its arguments.

    Raises:
        MachineShort: no process or descriptor was available to the command or its children.
        OSError: the command could not be started for another reason.
    """
    process = await _started(argv, environment, folder, secret)
    try:
        collecting = wait_for_shielded(_collect(process, on_line), limit_s)
        finished = await disk_in_use().unless_it_hangs(collecting)
        if finished.code == _NO_FOLDER:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if finished.code and (what := shortage.in_words(finished.stderr)):
            # Whatever the command's own result is, it cannot be trusted without those resources.
            raise MachineShort(f"short of {what}", words=finished.stderr[-MAX_LINE:])
        return finished
    except asyncio.TimeoutError as error:
        raise TimeoutError(f"{Path(argv[0]).name} took longer than {limit_s:g} s") from error
    finally:
        await wait_shielded(_end(process))


async def _started(
    argv: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None,
    secret: bytes | None,
) -> asyncio.subprocess.Process:
    try:
        make = partial(HandedOver.make, argv, secret)
        handed_over = await run_in_thread_or_undo(make, HandedOver.close) if secret else make()
        try:
            return await _start(handed_over, environment, folder)
        finally:
            handed_over.close()
    except OSError as error:
        if what := shortage.of(error):
            raise MachineShort(f"short of {what}", words=str(error)) from None
        raise


async def _start(
    handed_over: HandedOver, environment: Mapping[str, str], folder: Path | None
) -> asyncio.subprocess.Process:
    """Start under guard; a cancellation waits until there is a process to kill.

    If it is cancelled half-way, asyncio kills the guard alone, and keeps the pipe open whose end
    would make the guard's reader kill the rest.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            handed_over.shell,
            "-c",
            _GUARD,
            "flashpool-guard",
            # Children get the limit of open files with which this process was started.
            str(processes.descriptors_of_children() or 0),
            # Not as `cwd`: this whole process is blocked until the child has executed a program,
            # and entering a directory on a volume that hangs may take forever.
            str(folder or "."),
            *handed_over.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            pass_fds=handed_over.descriptors,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await wait_shielded(_end_started(starting))
        raise


async def _end_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:
        await _end(starting.result())


async def _collect(
    process: asyncio.subprocess.Process, on_line: Callable[[str], None] | None
) -> Finished:
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = await asyncio.gather(
        _whole(process.stdout), _lines(process.stderr, on_line or _ignore)
    )
    return Finished(code=await process.wait(), stdout=stdout, stderr=stderr)


def _ignore(_line: str) -> None:
    return


async def _whole(stream: asyncio.StreamReader) -> str:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: max(0, MAX_STDOUT - len(kept))]
    return kept.decode("utf-8", "replace")


async def _lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> str:
    """Report and keep lines; split by hand: `readline` raises on a line beyond its buffer."""
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    rest = b""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        rest = rest[-MAX_LINE:]
        for raw in lines:
            _keep(raw, kept, on_line)
    if rest:
        _keep(rest, kept, on_line)
    return "\n".join(kept)


def _keep(raw: bytes, kept: deque[str], on_line: Callable[[str], None]) -> None:
    line = raw[:MAX_LINE].decode("utf-8", "replace").rstrip()
    kept.append(line)
    if line:
        on_line(line)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill everything that is left of the group, however the command ended."""
    try:
        # After a normal end this kills what the command left in its group. The guard was reaped
        # microseconds ago, so its process id is not in use again yet.
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    if process.stdin is not None:
        process.stdin.close()
    exited = asyncio.ensure_future(process.wait())
    try:
        await disk_in_use().unless_it_hangs(_one_exits(exited, _EXIT_S))
    except DiskHangs:
        await _one_exits(exited, _HANGING_EXIT_S)
    if exited.cancel():
        # The process waits for a disk that hangs, and exits only when the disk answers.
        _log.warning("process %d does not exit after its SIGKILL", process.pid)
    # Until Python 3.10's garbage collection, pipes that were not read to their end would stay open.
    process._transport.close()  # type: ignore[attr-defined]  # there is no public method
    await asyncio.sleep(0)


async def _one_exits(exited: asyncio.Future[int], limit_s: float) -> None:
    await asyncio.wait({exited}, timeout=limit_s)
