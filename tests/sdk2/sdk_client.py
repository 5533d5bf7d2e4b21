"""Runs the scripts of client2/, the real client of SDK 2.0."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
CLIENT: Final = HERE / "client2"
APPS: Final = HERE / "apps"
#: The folder that redirects requests for load-balanced endpoints to a server.
REDIRECT: Final = CLIENT / "redirect"

#: Name, function, way of calling, arguments; a mapping of arguments means keywords.
Case = tuple[str, str, str, list[Any] | dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The outcomes of the calls."""

    calls: dict[str, Any]

    def value(self, call: str) -> Any:
        assert "value" in self.calls[call], self.calls[call].get("text")
        return self.calls[call]["value"]

    def text(self, call: str) -> str:
        """Return the text of the error that a call raised."""
        assert "text" in self.calls[call], self.calls[call]
        return str(self.calls[call]["text"])


def run_script(
    python: Path, script: str, *arguments: str, home: Path, variables: Mapping[str, str]
) -> str:
    """Run a script of client2/; return what it prints last."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [python, CLIENT / script, *arguments],
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(home),
            "RUNPOD_API_KEY": "client-key",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n").rpartition("\n")[2]


def call_queue(
    python: Path,
    app: str,
    cases: Sequence[Case],
    *,
    home: Path,
    variables: Mapping[str, str],
    deployed: bool = False,
) -> Told:
    """Call functions of an app, in a dev session if they are not deployed."""
    last = run_script(
        python,
        "queue_calls.py",
        str(APPS / app),
        json.dumps(list(cases)),
        home=home,
        variables={**variables, **({} if deployed else {"RUNPOD_DEV_SESSION": "1"})},
    )
    return Told(calls=json.loads(last))


#: Name, object, verb, path, body.
ApiCase = tuple[str, str, str, str, Any]


def call_api(
    python: Path,
    app: str,
    url: str,
    cases: Sequence[ApiCase],
    *,
    home: Path,
    deployed: bool = False,
) -> Told:
    """Call APIs of an app which a server at the URL serves, in a dev session if not deployed."""
    told = json.dumps(list(cases))
    variables = {
        "RUNPOD_ENDPOINT_BASE_URL": "http://endpoints.test/v2",
        "PYTHONPATH": str(REDIRECT),
        "API_URL": url,
        **({} if deployed else {"RUNPOD_DEV_SESSION": "1"}),
    }
    last = run_script(python, "api_calls.py", str(APPS / app), told, home=home, variables=variables)
    return Told(calls=json.loads(last))


def call_tasks(
    python: Path, app: str, url: str, token: str, cases: Sequence[Case], *, home: Path
) -> Told:
    """Run tasks of an app in the pod at the URL."""
    told = json.dumps(list(cases))
    variables = {"RUNPOD_API_BASE_URL": "http://api.test", "RUNPOD_DEV_SESSION": "1"}
    last = run_script(
        python, "task_calls.py", str(APPS / app), url, token, told, home=home, variables=variables
    )
    return Told(calls=json.loads(last))
