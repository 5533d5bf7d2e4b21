"""A process of its own that acquires an environment and tells what it got, as JSON.

With `hold`, it says so and keeps its lease until its stdin ends.
"""

import asyncio
import json
import sys
from pathlib import Path

from flashpool.envs import EnvironmentFailure, Environments, EnvSettings, Spec


async def main(order: dict) -> None:
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


def say(what: dict) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
