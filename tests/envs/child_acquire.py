"""A separate process that acquires an environment and prints what it got, as JSON.

With `hold` it keeps its leases until its stdin ends. With `die_at` ("module:Class.name:before"
or "...:after") it kills itself with SIGKILL around the first call of that function. With
`file_limit` no file may grow larger.
"""

import asyncio
import importlib
import inspect
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from flashpool.envs import EnvironmentFailure, Environments, EnvSettings, Spec


async def main(order: dict[str, Any]) -> None:
    settings = EnvSettings(
        base_python=Path(order["base_python"]),
        volume=Path(order["volume"]),
        local=Path(order["local"]),
        mode=order.get("mode", "volume"),
        find_links=tuple(order["find_links"]),
        runtime_pins=(),
        min_free_mb=0,
        heartbeat_s=0.2,
        claim_stale_s=order.get("claim_stale_s", 15.0),
        quota_mb=order.get("quota_mb", 0),
    )
    async with Environments(settings) as environments:
        spec = Spec(requirements=tuple(order["requirements"]))
        asked = [environments.acquire(spec) for _ in range(order.get("times", 1))]
        leases = await asyncio.gather(*asked, return_exceptions=True)
        for lease in leases:
            if isinstance(lease, EnvironmentFailure):
                say({"error": type(lease).__name__, "message": str(lease)})
            elif isinstance(lease, BaseException):
                raise lease
            else:
                found = lease.environment
                say({"digest": found.digest, "origin": found.origin, "python": str(found.python)})
        if order.get("hold"):
            await asyncio.to_thread(sys.stdin.read)
        for lease in leases:
            if not isinstance(lease, BaseException):
                lease.release()
        await (await environments.open()).settled()


def die_at(where: str) -> None:
    module, path, when = where.split(":")
    owner = importlib.import_module(f"flashpool.envs.{module}")
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if inspect.isawaitable(result):
            return dying_later(result)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    async def dying_later(result: Any) -> None:
        await result
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)


def say(what: dict[str, str]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    the_order = json.loads(sys.argv[1])
    if the_order.get("file_limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (the_order["file_limit"], resource.RLIM_INFINITY))
    if the_order.get("die_at"):
        die_at(the_order["die_at"])
    asyncio.run(main(the_order))
