"""The other forms: the program in calls to a real server."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from differential.outcomes import Outcome, masked, read_files
from differential.plain import lines
from differential.programs import Form, Program
from e2e.server import Server, until

#: Calls of the form `many`, one after another, and of `parallel`, at the same time.
MANY: Final = 3
PARALLEL: Final = 3
#: Zygotes are not going to change any more when they have been the same for so long.
QUIET_S: Final = 1.5
QUIET_LIMIT_S: Final = 300.0
CALL_LIMIT_S: Final = 240.0
#: Programs of one form that are run side by side.
ABREAST: Final = 2


@dataclass(slots=True)
class Served:
    """Runs programs as calls; every call has a directory of its own."""

    server: Server
    folder: Path
    dependencies: list[str]
    #: One for each call, whatever thread makes it.
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def interpreter(self) -> str:
        """The environment's Python; the first call has the environment built."""
        answer = self._answer(
            {
                "function_name": "python",
                "function_code": "def python():\n    import sys\n    return sys.executable\n",
            }
        )
        assert answer["success"], answer["error"]
        return str(answer["json_result"])

    def run(self, programs: list[Program]) -> dict[str, dict[Form, list[Outcome]]]:
        """Every form of every program.

        One form of all of them comes after another, so that what one program made a
        process import is there when the others run.
        """
        found: dict[str, dict[Form, list[Outcome]]] = {program.name: {} for program in programs}

        def form(name: Form, run: Callable[[Program], list[Outcome]]) -> None:
            chosen = [program for program in programs if name in program.forms]
            for program, outcomes in zip(chosen, _abreast(run, chosen), strict=True):
                found[program.name].setdefault(name, []).extend(outcomes)

        form("cold", lambda program: [self._call(program)])
        self._settle()
        form("warm", lambda program: [self._call(program)])
        self._settle()
        form("many", lambda program: [self._call(program) for _ in range(MANY)])
        form("parallel", self._parallel)
        # Instances of one class: what the first imported may be there for the others.
        form("instance", lambda program: [self._call(program, in_instance=True)])
        self._settle()
        form("instance", lambda program: [self._call(program, in_instance=True) for _ in range(2)])
        return found

    def _parallel(self, program: Program) -> list[Outcome]:
        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(lambda _: self._call(program), range(PARALLEL)))

    def _call(self, program: Program, *, in_instance: bool = False) -> Outcome:
        number = next(self._numbers)
        scratch = self.folder / f"{program.name}-{number}"
        scratch.mkdir(parents=True)
        arguments = [str(scratch)] if program.scratch else []
        what = _as_method(program, number) if in_instance else _as_function(program)
        answer = self._answer(
            {
                **what,
                "args": arguments,
                "modules": program.modules,
                "env": program.env,
                **program.fields,
            }
        )
        receipt = answer.get("receipt") or {}
        if program.at_exit and receipt.get("pid"):
            until(lambda: not _runs(receipt["pid"]))
        if not answer["success"]:
            return Outcome(
                error_type=answer["error_type"],
                error=answer["error"],
                stdout=lines(answer.get("stdout") or ""),
                files=read_files(scratch),
            )
        return Outcome(
            result=masked(answer["json_result"], scratch),
            stdout=lines(answer["stdout"].replace(str(scratch), "<scratch>")),
            files=read_files(scratch),
            preloaded=receipt["preloaded"],
        )

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        body = {
            "serialization_format": "json",
            "dependencies": self.dependencies,
            "timeout_s": CALL_LIMIT_S,
            **request,
        }
        # With the first call the client waits for the environment as well.
        answer = self.server.http.post("/execute", json=body, timeout=900)
        assert answer.status_code == 200, f"{answer.status_code}: {answer.text}"
        return answer.json()  # type: ignore[no-any-return]

    def _settle(self) -> None:
        """Wait until no zygote is starting, and none begins to for a while.

        Which modules are preloaded, and when, is the server's affair. What is not by then is
        not in the table's marks; the outcomes have to be the same all the same.
        """
        seen: Any = None
        since = time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            zygotes = self.server.stats()["zygotes"]
            now = [(zygote["environment"], zygote["profile"], zygote["pid"]) for zygote in zygotes]
            if now != seen or any(zygote["state"] != "ready" for zygote in zygotes):
                seen, since = now, time.monotonic()
            return time.monotonic() - since >= QUIET_S

        until(quiet, QUIET_LIMIT_S)


def _as_function(program: Program) -> dict[str, Any]:
    return {"function_name": program.entry, "function_code": program.code}


def _as_method(program: Program, number: int) -> dict[str, Any]:
    """The same function, called by a method of an instance."""
    asynchronous = f"async def {program.entry}(" in program.code
    call = f"{'await ' * asynchronous}{program.entry}(*args)"
    code = (
        f"{program.code}\n\nclass Holder:\n"
        f"    {'async ' * asynchronous}def held(self, *args):\n        return {call}\n"
    )
    return {
        "execution_type": "class",
        "class_name": "Holder",
        "class_code": code,
        "method_name": "held",
        "instance_id": f"{program.name}-{number}",
    }


def _abreast(
    run: Callable[[Program], list[Outcome]], programs: Iterable[Program]
) -> list[list[Outcome]]:
    with ThreadPoolExecutor(ABREAST) as threads:
        return list(threads.map(run, programs))


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
