"""Starts flashpool by the platform's variables: in this interpreter, or by its command.

RUNPOD_RUNTIME_KIND   queue -> flashpool serve qb     with the SDK's flags
                      api   -> flashpool serve lb     on PORT
                      task  -> flashpool serve task   on RUNPOD_TASK_PORT
"""

import importlib.util
import os
import shutil
import sys

_COMMANDS = {"queue": "qb", "api": "lb", "task": "task"}
_QUEUE = "RUNPOD_WEBHOOK_GET_JOB"
_KIND = "RUNPOD_RUNTIME_KIND"


def kind_of(environ):
    """Return the kind to serve: RUNPOD_RUNTIME_KIND, else the queue if its address is set."""
    kind = environ.get(_KIND, "").strip().lower()
    if kind in _COMMANDS:
        return kind
    if kind:
        raise SystemExit(f"Error: {_KIND}={kind!r} is not known: set it to queue, api or task")
    if environ.get(_QUEUE):
        return "queue"
    raise SystemExit(f"Error: {_KIND} is not set: set it to queue, api or task")


def variables_of(kind, environ):
    """Return settings that the platform names differently, unless they are set already."""
    found = {}
    if kind == "api" and environ.get("PORT"):
        found["FLASHPOOL_PORT"] = environ["PORT"]
    return {name: value for name, value in found.items() if not environ.get(name)}


def start(kind, arguments):
    """Serve, in this process or in the interpreter that has flashpool."""
    os.environ.update(variables_of(kind, os.environ))
    command = ["serve", _COMMANDS[kind], *arguments]
    if importlib.util.find_spec("flashpool") is not None:
        from flashpool.frontends.cli import main

        main(command, prog_name="flashpool")
        return
    program = shutil.which("flashpool")
    if program is None:
        raise SystemExit(
            "Error: flashpool is not installed for this Python, and the command `flashpool` is not on PATH"
        )
    # Calls see the packages of this Python, the image's own.
    os.environ.setdefault("FLASHPOOL_BASE_PYTHON", sys.executable)
    os.execv(program, [program, *command])
