"""``flashpool call``: runs a function of a file in a pool of its own, and shows its output live."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from flashpool.envs import Spec, SpecRefused
from flashpool.envs.resolving.spec import normalise
from flashpool.envs.settings import REFERENCE_KINDS
from flashpool.frontends import schema
from flashpool.frontends.call_builder import Defaults
from flashpool.frontends.settings.table import Settings
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, CallLimits, Codec, Outcome
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import TAIL_HEADING
from flashpool.pool.supervisor.supervisor import Supervisor
from flashpool.pool.workers.ends import outcomes

#: Runs in the worker: loads the file as a module, so that the function keeps its imports and
#: constants, the main guard does not run, and tracebacks show the file.
_LOAD: Final = """
import importlib.util, sys
_spec = importlib.util.spec_from_file_location({name!r}, {path!r})
_module = importlib.util.module_from_spec(_spec)
sys.modules[{name!r}] = _module
_spec.loader.exec_module(_module)
{function} = getattr(_module, {function!r}, None)
if not callable({function}):
    class MissingFunction(Exception): pass
    _there = [name for name, value in vars(_module).items()
              if callable(value) and not isinstance(value, type)
              and getattr(value, "__module__", None) == {name!r}]
    _there = ", ".join(_there[:20]) or "none"
    raise MissingFunction({file!r} + " defines no function {function!r}; its functions: " + _there)
"""


#: Advice for a module that is not installed.
_REMEDY: Final = "name the package that provides it in --with"
#: Names of limits in messages, and the matching options of this command.
_OPTIONS: Final = {"timeout_s": "--timeout", "memory_mb": "--memory-mb"}
#: Most bytes of shown output that are kept, to find them in an error message again.
_SHOWN_KEPT: Final = 16 * 1024


class UsageError(Exception):
    """The command line does not name a function, or its arguments are invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A function, the folder of its file, and the request that calls it."""

    function: str
    folder: str
    body: bytes
    #: How the arguments were given; printed if the function does not accept them.
    hint: str = ""


def read_request(target: str, arguments: str) -> Request:
    """Build the request that the command line describes."""
    path, separator, function = target.rpartition(":")
    if not separator or not function.isidentifier():
        raise UsageError(f"{target!r} is not FILE.py:FUNCTION")
    _check_file(path)
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, ValueError) else "it is nested too deeply"
        raise UsageError(
            f"ARGS is not JSON: {why}. Put all of it between single quotes, and text between "
            'double quotes within: \'[1, "two"]\', \'{"name": "Ada"}\', \'"two"\''
        ) from None
    body: dict[str, Any] = {
        "function_name": function,
        "function_code": _LOAD.format(
            name=Path(path).stem, path=os.path.abspath(path), file=path, function=function
        ),
        "args": values if isinstance(values, list) else [],
        "kwargs": values if isinstance(values, dict) else {},
        "serialization_format": "json",
    }
    if not isinstance(values, (list, dict)):
        body["args"] = [values]
    return Request(
        function=function,
        folder=os.path.dirname(os.path.abspath(path)),
        body=json.dumps(body).encode(),
        hint=_hint(values, arguments),
    )


def _hint(values: Any, arguments: str) -> str:
    if isinstance(values, list):
        one = f" For one argument that is a list, write '[{arguments}]'." if values else ""
        return f"ARGS is a list, so it was called with {len(values)} arguments.{one}"
    if isinstance(values, dict):
        return (
            "ARGS is an object, so it was called with keyword arguments. "
            f"For one argument that is an object, write '[{arguments}]'."
        )
    return ""


def check_requirements(requirements: Iterable[str]) -> None:
    """Refuse invalid requirements before a pool is started."""
    try:
        normalise(Spec(requirements=tuple(requirements)), references=REFERENCE_KINDS)
    except SpecRefused as error:
        raise UsageError(f"--with: {error}") from None


def _check_file(path: str) -> None:
    if os.path.isfile(path) and os.access(path, os.R_OK):
        return
    why = "it may not be read" if os.path.isfile(path) else "no such file"
    if os.path.isdir(path):
        why = "it is a folder; name a file in it"
    hint = f"; did you mean {path}.py?" if os.path.isfile(f"{path}.py") else ""
    raise UsageError(f"Cannot read {path}: {why}{hint}")


class _Live:
    """A sink that copies output to stderr as it arrives."""

    wants_output = True

    def __init__(self, outcome: asyncio.Future[Outcome]) -> None:
        self.outcome = outcome
        #: The end of the output that was shown.
        self.shown = b""

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Copy output to stderr."""
        self.shown = (self.shown + chunk)[-_SHOWN_KEPT:]
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()

    def told(self, line: str) -> None:
        """Show the progress of the environment's build."""
        self.output(f"{line}\n".encode("utf-8", "backslashreplace"))

    def environment_ready(self) -> None:
        """Ignore: the call starts soon."""

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Ignore: the result contains the items of a generator as a list."""

    def done(self, outcome: Outcome) -> None:
        """Set the outcome."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def run(
    request: Request,
    settings: Settings,
    *,
    timeout_s: float | None,
    memory_mb: int | None,
    requirements: tuple[str, ...] = (),
) -> Outcome:
    """Run the call in a pool of its own; Ctrl-C cancels the call."""
    config = replace(
        settings.to_pool_config(),
        slots=1,
        max_spares=1,
        call_timeout_s=None,
        extra_path=(request.folder,),
        # The call sees all variables of the user's shell, as a script does.
        worker_env=dict(os.environ),
    )
    call = Call(
        codec=Codec.FLASH,
        body=request.body,
        label=request.function,
        spec=Spec(requirements=requirements) if requirements else None,
        limits=CallLimits(run_s=timeout_s, memory_mb=memory_mb),
    )
    return asyncio.run(_run(Supervisor(config, settings.to_env_settings()), call, request))


def run_again(
    body: bytes, label: str, settings: Settings, result_limit: int | None = None
) -> Outcome:
    """Run a server's request again in a pool of its own, under the same conditions."""
    decoded, body, _ = schema.decode(body)
    call = Defaults(result_limit=result_limit, concurrency=1).call_of(decoded, body)
    config = replace(settings.to_pool_config(), slots=1, max_spares=1)
    request = Request(function=label, folder="", body=body)
    return asyncio.run(_run(Supervisor(config, settings.to_env_settings()), call, request))


async def _run(pool: Backend, call: Call, request: Request) -> Outcome:
    loop = asyncio.get_running_loop()
    await pool.start()
    try:
        live = _Live(loop.create_future())
        call_id = pool.submit(call, live)
        loop.add_signal_handler(signal.SIGINT, pool.cancel, call_id, "interrupted")
        outcome = await live.outcome
        return outcome if outcome.ok else _for_terminal(outcome, live.shown, request)
    except FlashpoolError as error:
        return Outcome(error_type=type(error).__name__, error=error.message, details=error.details)
    finally:
        await pool.stop()


def _for_terminal(outcome: Outcome, shown: bytes, request: Request) -> Outcome:
    """Return the failure in terms of the command line, without output that was shown before."""
    if outcome.from_user:
        return _of_user(outcome, request)
    message, heading, tail = (outcome.error or "").partition(TAIL_HEADING)
    for name, option in _OPTIONS.items():
        message = message.replace(name, option)
    rest = _not_shown(tail, shown.decode("utf-8", "replace"))
    return replace(outcome, error=f"{message}{heading}{rest}" if rest else message)


def _of_user(outcome: Outcome, request: Request) -> Outcome:
    message = str(outcome.details.get("message", ""))
    if outcome.error_type == "MissingFunction":
        return replace(outcome, error=message)
    outcome = replace(outcome, error=outcomes.told(outcome, _REMEDY))
    # Only if the call itself does not fit: a TypeError raised inside names another function.
    if outcome.error_type == "TypeError" and message.startswith(f"{request.function}() "):
        return replace(outcome, error=f"{(outcome.error or '').rstrip()}\n{request.hint}")
    return outcome


def _not_shown(tail: str, shown: str) -> str:
    """Return the tail of the output that is not at the end of ``shown``."""
    shown = shown.rstrip()
    for end in range(len(tail), 0, -1):
        if shown.endswith(tail[:end].rstrip()):
            return tail[end:].lstrip("\n")
    return tail


def show_failure(outcome: Outcome) -> None:
    """Print the failure on stderr: the error or traceback, then the type of the outcome."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text(outcome.error or "", style="red"), soft_wrap=True)
    if not outcome.from_user:
        console.print(Text(f"The call ended as {outcome.error_type}.", style="bold"))
