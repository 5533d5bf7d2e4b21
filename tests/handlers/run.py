#!/usr/bin/env python3
"""Run every ``test_*.json`` beside this file through an image's entry point.

    run.py queue       each job in a process of its own: ``handler.py --test_input JOB``
    run.py balanced    all requests to one server: ``uvicorn lb_handler:app``, POST /execute

A file holds one job as a client sends it, and what must come of it:

    about     one sentence
    input     the request
    expect    `success`, `json_result` and `error_type` must be equal; `result` is compared with the
              unpickled result; `error` and `stdout` (a text, or several) must occur in the answer's
    again     what must come of the same request, sent again to the same server; the queue's jobs
              have a process each, and leave it out
    needs     ["container"]: the request changes the system, so it is only sent with --container

It prints one line for each file, and exits with 1 when any failed. It needs a Python and no
package, so that it runs inside the images as well.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
#: Seconds for one job, a first build of its environment included.
CALL_LIMIT_S: Final = 120
START_LIMIT_S: Final = 60
STOP_LIMIT_S: Final = 40
#: What the SDK prints before the answer of a job that did not fail.
_ANSWER: Final = "Job result: "


class Failed(Exception):
    """An answer is not what the file expects; the message says how."""


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    request: dict[str, Any]
    expect: dict[str, Any]
    again: list[dict[str, Any]] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Case:
        found = json.loads(path.read_text("utf-8"))
        name = path.stem[len("test_") :]
        given = {key: found[key] for key in ("again", "needs") if key in found}
        return cls(name, found["input"], found["expect"], **given)


@dataclass(frozen=True)
class Entry:
    """How the entry points are started."""

    python: str
    folder: Path

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """A process of its own session, without the caller's own settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH_", "RUNPOD_"))}
        return subprocess.Popen(
            [self.python, *arguments],
            cwd=self.folder,
            env={"FLASHPOOL_ADMIN_PORT": "0", **kept},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )


def queue_case(case: Case, entry: Entry) -> None:
    """Run the job with the SDK's --test_input."""
    job = json.dumps({"input": case.request})
    process = entry.start(
        "handler.py", "--test_input", job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        raw, _ = process.communicate(timeout=CALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"handler.py did not end within {CALL_LIMIT_S} s") from None
    finally:
        _kill(process)
    printed = raw.decode(errors="replace")
    _check_exit(case, process.returncode, printed)
    if case.expect["success"]:
        check(_printed_answer(printed), case.expect)
        return
    # Of a job that failed, the SDK prints the message, and no answer.
    for part in ("error_type", "error", "stdout"):
        for text in _texts(case.expect.get(part, [])):
            if text not in printed:
                raise Failed(f"{text!r} is not in what handler.py printed:\n{printed}")


def _check_exit(case: Case, status: int, printed: str) -> None:
    expected = 0 if case.expect["success"] else 1
    if status != expected:
        raise Failed(f"handler.py exited with {status}, not with {expected}:\n{printed}")


def _printed_answer(printed: str) -> dict[str, Any]:
    for line in printed.splitlines():
        _, found, answer = line.partition(_ANSWER)
        if found:
            output: dict[str, Any] = ast.literal_eval(answer)["output"]
            return output
    raise Failed(f"handler.py printed no answer:\n{printed}")


@contextlib.contextmanager
def serving(entry: Entry) -> Iterator[str]:
    """A load-balanced server; its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock, tempfile.TemporaryFile() as log:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        process = entry.start(
            *("-m", "uvicorn", "lb_handler:app", "--fd", str(sock.fileno())),
            pass_fds=[sock.fileno()],
            stdout=log,
            stderr=log,
        )
        try:
            _wait_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
            _kill(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    end = time.monotonic() + START_LIMIT_S
    # Once it is ready it answers 200; before that 204, or not at all.
    while _ping(url) != 200:
        if process.poll() is not None or time.monotonic() > end:
            log.seek(0)
            raise Failed(f"the server did not become ready:\n{log.read().decode(errors='replace')}")
        time.sleep(0.05)


def _ping(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def balanced_case(case: Case, url: str) -> None:
    """Send the request as often as the file says."""
    for expect in (case.expect, *case.again):
        http = urllib.request.Request(
            f"{url}/execute",
            data=json.dumps(case.request).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(http, timeout=CALL_LIMIT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise Failed(f"HTTP status {error.code}: {text}") from None
        except OSError as error:
            raise Failed(f"no answer: {error}") from None
        check(answer, expect)


def check(answer: dict[str, Any], expect: dict[str, Any]) -> None:
    """Raise `Failed` where the answer is not as expected."""
    shown = json.dumps(answer, indent=1)
    for key in ("success", "json_result", "error_type"):
        if key in expect and answer.get(key) != expect[key]:
            raise Failed(f"{key} is {answer.get(key)!r}, not {expect[key]!r}: {shown}")
    if "result" in expect:
        value = pickle.loads(base64.b64decode(answer["result"]))
        if value != expect["result"]:
            raise Failed(f"the result is {value!r}, not {expect['result']!r}")
    for key in ("error", "stdout"):
        for text in _texts(expect.get(key, [])):
            if text not in (answer.get(key) or ""):
                raise Failed(f"{text!r} is not in {key}: {shown}")


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def report(case: Case, run: Callable[[Case], None], is_container: bool) -> str:
    """Run one case and print its line; `passed`, `failed` or `skipped`."""
    if "container" in case.needs and not is_container:
        print(f"skip {case.name}: it changes the system, and is run inside an image", flush=True)
        return "skipped"
    start = time.monotonic()
    try:
        run(case)
    except Failed as error:
        print(f"FAIL {case.name}: {error}", flush=True)
        return "failed"
    print(f"pass {case.name} ({time.monotonic() - start:.1f} s)", flush=True)
    return "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("entry", choices=("queue", "balanced"))
    parser.add_argument("--python", default=sys.executable, help="interpreter that has flashpool")
    parser.add_argument(
        "--folder", type=Path, default=HERE.parents[1] / "docker", help="where the entry points lie"
    )
    parser.add_argument("--tests", type=Path, default=HERE, help="where the files lie")
    parser.add_argument("--container", action="store_true", help="the system may be changed")
    given = parser.parse_args()
    # Absolute, but not resolved: a virtualenv's interpreter is a link.
    entry = Entry(os.path.abspath(given.python), given.folder)
    cases = [Case.read(path) for path in sorted(given.tests.glob("test_*.json"))]
    if not cases:
        print(f"FAIL: there is no test_*.json in {given.tests}")
        return 1
    if given.entry == "queue":
        with ThreadPoolExecutor(2) as threads:
            ended = list(
                threads.map(
                    lambda case: report(case, lambda c: queue_case(c, entry), given.container),
                    cases,
                )
            )
    else:
        try:
            with serving(entry) as url:
                ended = [
                    report(case, lambda c: balanced_case(c, url), given.container) for case in cases
                ]
        except Failed as error:
            print(f"FAIL: {error}")
            return 1
    counts = ", ".join(f"{ended.count(how)} {how}" for how in ("passed", "failed", "skipped"))
    print(f"{given.entry}: {counts}")
    return 1 if "failed" in ended else 0


if __name__ == "__main__":
    sys.exit(main())
