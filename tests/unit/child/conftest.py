"""`call`: runs a request in a fork of a lean interpreter and says how it ended."""

import base64
import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest

from flashpool.pool._child import wire

HERE = Path(__file__).parent
CHILD = Path(wire.__file__).resolve().parent


class Worker:
    """Talks to one `lean_worker`."""

    def __init__(self):
        packages = {str(Path(cloudpickle.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "lean_worker.py"), str(CHILD), *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the lean worker died: {self.process.wait()}"
        answer = {"record": None, **json.loads(line)}
        if answer.get("pickle"):
            answer["pickle"] = base64.b64decode(answer["pickle"])
        return SimpleNamespace(**answer)

    def body(self, body, stream=False):
        return self.send(body=base64.b64encode(body).decode(), stream=stream)

    def python(self, source):
        """Run Python in a fork and give back its ``result`` (JSON-able)."""
        answer = self.send(python=source)
        assert answer.ok, vars(answer)
        return answer.result

    def __call__(self, code, *args, stream=False, **fields):
        """Call ``f`` of the code (the first function in it may have any other name)."""
        request = {"function_name": "f", "function_code": code, **fields}
        if fields.get("serialization_format") == "json":
            request["args"] = list(args)
        else:
            request["args"] = [encoded(arg) for arg in args]
        return self.body(json.dumps(request).encode(), stream)

    def value(self, code, *args, **fields):
        """The same, for calls that must succeed: the value."""
        answer = self(code, *args, **fields)
        assert answer.ok, vars(answer)
        return pickle.loads(base64.b64decode(answer.result, validate=True))

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def encoded(value):
    return base64.b64encode(cloudpickle.dumps(value)).decode()


@pytest.fixture(scope="session", autouse=True)
def worker():
    """For all modules of this folder: begun within one, it would count as left behind by that."""
    worker = Worker()
    yield worker
    worker.close()
