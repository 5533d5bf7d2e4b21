"""Requests in forks of an interpreter with only the modules that a zygote has.

The other end is lean_worker.py.
"""

import base64
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import cloudpickle

from flashpool.pool._child import wire

#: The folder of the modules that children run.
CHILD: Final = Path(wire.__file__).resolve().parent
_SCRIPT: Final = Path(__file__).with_name("lean_worker.py")


class LeanWorker:
    """A client of one `lean_worker`."""

    def __init__(self) -> None:
        packages = str(Path(cloudpickle.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), str(CHILD), packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, **order: object) -> SimpleNamespace:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the lean worker died: {self.process.wait()}"
        answer = {"record": None, **json.loads(line)}
        if answer.get("pickle"):
            answer["pickle"] = base64.b64decode(answer["pickle"])
        return SimpleNamespace(**answer)

    def body(self, body: bytes, stream: bool = False) -> SimpleNamespace:
        return self.send(body=base64.b64encode(body).decode(), stream=stream)

    def python(self, source: str) -> Any:
        """Run Python in a fork and return its ``result``, which must be valid JSON."""
        answer = self.send(python=source)
        assert answer.ok, vars(answer)
        return answer.result

    def __call__(
        self, code: str, *args: object, stream: bool = False, **fields: object
    ) -> SimpleNamespace:
        """Call ``f`` of the code (the first function in it may have any other name)."""
        request = {"function_name": "f", "function_code": code, **fields}
        if fields.get("serialization_format") == "json":
            request["args"] = list(args)
        else:
            request["args"] = [_encoded(arg) for arg in args]
        return self.body(json.dumps(request).encode(), stream)

    def value(self, code: str, *args: object, **fields: Any) -> Any:
        """Call a function that must succeed; return its value."""
        answer = self(code, *args, **fields)
        assert answer.ok, vars(answer)
        return pickle.loads(base64.b64decode(answer.result, validate=True))

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def _encoded(value: object) -> str:
    return base64.b64encode(cloudpickle.dumps(value)).decode()
