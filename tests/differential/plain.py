"""The plain form: the program as a script of its environment's Python."""

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from differential.outcomes import Outcome, masked, read_files
from differential.programs import Program

from flashpool.frontends.settings.worker_env import worker_env

LIMIT_S: Final = 240.0

#: Behind the source, so that whatever looks at the script meets the source first.
_CALL: Final = """

if __name__ == "__main__":
    import json as _json

    _outcome = {}
    try:
        _value = %(entry)s(*_json.loads(%(arguments)r))
        if hasattr(_value, "__await__"):
            import asyncio as _asyncio

            _value = _asyncio.run(_value)
        elif hasattr(_value, "__next__"):
            _value = list(_value)
        _outcome["result"] = _value
    except BaseException as _error:
        _outcome["error_type"] = type(_error).__name__
        _outcome["error"] = str(_error)
    with open(%(out)r, "w") as _file:
        _file.write(_json.JSONEncoder().encode(_outcome))
"""
_WARNED: Final = re.compile(
    r"(?m)^(?:/\S+/script/main\.py|flash:\w+(?:#\d+)?):\d+: (.*)\n(?:  .*\n)?"
)
_LOGGED: Final = re.compile(r"(?m)^(?:WARNING|ERROR|CRITICAL):[\w.]+:")


@dataclass(frozen=True, slots=True)
class Plain:
    """Runs programs with one interpreter, each in a folder of its own."""

    python: str
    #: The server's: a call sees a part of them, and so does the script.
    variables: dict[str, str]
    folder: Path

    def run(self, program: Program, number: int = 0) -> Outcome:
        """One run; the number tells several of them apart."""
        folder = self.folder / f"{program.name}-{number}"
        scratch, out = folder / "scratch", folder / "outcome.json"
        scratch.mkdir(parents=True)
        for path, text in program.modules.items():
            target = folder / "script" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        (folder / "script").mkdir(exist_ok=True)
        script = folder / "script" / "main.py"
        arguments = json.dumps([str(scratch)] if program.scratch else [])
        call = _CALL % {"entry": program.entry, "arguments": arguments, "out": str(out)}
        script.write_text(program.code + call)
        done = subprocess.run(
            [self.python, script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**worker_env({**os.environ, **self.variables}, ()), **program.env},
            timeout=LIMIT_S,
            check=False,
            # A shell's background jobs ignore it, and so would the script.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        text = done.stdout.decode(errors="replace")
        if not out.exists():
            return Outcome(error_type=f"exit status {done.returncode}", error=text)
        return Outcome(
            stdout=lines(text.replace(str(scratch), "<scratch>")),
            files=read_files(scratch),
            **masked(json.loads(out.read_text()), scratch),
        )


def lines(text: str) -> tuple[str, ...]:
    """What was printed, without what names this one process or source.

    A warning names the file of the line that caused it, the script or the source of a call, and
    then shows the line where there is a file. A record of a logger that nobody configured has
    its level and its logger's name in calls.
    """
    text = _LOGGED.sub("", text)
    text = _WARNED.sub(r"<source>: \1\n", text)
    return tuple(sorted(line for line in text.splitlines() if line.strip()))
