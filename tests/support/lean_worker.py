"""A worker as lean as a real one, for tests: started with ``-I -S``, it forks per request.

stdin   {"body": base64, "stream": bool} a line    a request, or {"python": source}
stdout  {"ok", "result" | "kind", "record", "pickle", "modules"} a line, or {"status"}
"""

from __future__ import annotations

import base64
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    sys.path += sys.argv[2:]
    package = type(sys)("_flashpool")
    package.__path__ = [sys.argv[1]]
    sys.modules["_flashpool"] = package
    from _flashpool import call_files, processes
    from _flashpool.running import invoke  # noqa: F401
    from _flashpool.serialization import (
        exception_pickling,  # noqa: F401
        flash,  # noqa: F401
        live_module,
    )

    call_files.name(f"flashpool-{os.getpid()}")
    call_files.watch(processes.shared_bytes(1), 0)
    live_module.prepare()
    for line in sys.stdin:
        told = in_fork(json.loads(line))
        call_files.remove_all_but(())
        print(json.dumps(told), flush=True)


def in_fork(order: dict[str, Any]) -> Any:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            with os.fdopen(writer, "w") as file:
                json.dump(answer(order), file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else {"status": os.waitstatus_to_exitcode(status)}


def answer(order: dict[str, Any]) -> dict[str, Any]:
    os.dup2(2, 1)
    from _flashpool import wire
    from _flashpool.serialization import exception_pickling

    before = set(sys.modules)
    try:
        told = {"ok": True, **run(order)}
    except (wire.BadRequest, exception_pickling.Unserializable) as error:
        told = {"ok": False, "kind": type(error).__name__, "message": str(error)}
    except BaseException as error:
        # A real worker recognises its own frames by their folder; here they are the first two.
        traceback = BaseException.__dict__["__traceback__"].__get__(error)
        BaseException.with_traceback(error, traceback.tb_next.tb_next)
        record, data = exception_pickling.capture(error)
        told = {"ok": False, "kind": "raised", "pickle": base64.b64encode(data).decode(), **record}
    return {**told, "modules": sorted(set(sys.modules) - before)}


def run(order: dict[str, Any]) -> dict[str, Any]:
    from _flashpool.running import invoke
    from _flashpool.serialization import flash

    if "python" in order:
        scope: dict[str, Any] = {"__name__": "in_worker"}
        exec(order["python"], scope)
        return {"result": scope.get("result")}
    items: list[Any] = []
    call = flash.load_call(base64.b64decode(order["body"]))
    on_item = items.append if order["stream"] else None
    value = invoke.run(call.function, call.args, call.kwargs, on_item)
    if value is invoke.STREAMED:
        return {"items": items}
    return {"result": flash.dump_result(value, call.as_json).decode("ascii")}


if __name__ == "__main__":
    main()
