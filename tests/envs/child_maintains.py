"""A process of any version that maintains a store and prints results as JSON; argument: an order.

`evict`: sweep up, and evict all that nobody uses. `write`, `read`: what a request meant, and what
calls imported. It imports by the names of today or, where these are not there, of version b91e52e.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import flashpool.envs
from flashpool.envs import Environments, EnvSettings

try:
    from flashpool.envs.resolving.memo import StoredMemo
    from flashpool.envs.store.eviction import sweep
    from flashpool.envs.store.layout import Store, write_json
    from flashpool.envs.store.preloads import read_preloads
except ImportError:
    from flashpool.envs.eviction import sweep  # type: ignore[import-not-found,no-redef]
    from flashpool.envs.memo import StoredMemo  # type: ignore[import-not-found,no-redef]
    from flashpool.envs.preloads import read_preloads  # type: ignore[import-not-found,no-redef]
    from flashpool.envs.store import Store, write_json  # type: ignore[no-redef]

REQUEST, DIGEST = "1" * 40, "2" * 40


async def evict(order: dict[str, Any]) -> object:
    settings = EnvSettings(
        base_python=Path(order["base_python"]),
        volume=Path(order["volume"]),
        local=Path(order["local"]),
        mode=order["mode"],
        find_links=tuple(order["find_links"]),
        runtime_pins=(),
        min_free_mb=0,
        heartbeat_s=0.2,
    )
    async with Environments(settings) as environments:
        provider = await environments.open()
        opened = getattr(provider, "open_store", None) or provider.ground
        for _ in range(2):
            sweep(opened.store, opened.holders)
        evicted = await provider.evict_unused()
        await provider.settled()
    return {"evicted": evicted.digests, "wanted": evicted.wanted}


def memory(order: dict[str, Any]) -> object:
    store = Store(Path(order["volume"]) / "flashpool")
    memo = StoredMemo(store, 3600.0, order["key"].encode() or None)
    if order["do"] == "write":
        store.prepare()
        memo.put(REQUEST, DIGEST, ("numpy",))
        write_json(store.preloads(DIGEST), {"modules": ["json", "os.path"]})
        return None
    found = memo.get(REQUEST)
    learned = read_preloads(store, DIGEST)
    modules = getattr(learned, "modules", learned)
    return {"fresh": found and found.fresh, "digest": found and found.digest, "modules": modules}


if __name__ == "__main__":
    the_order = json.loads(sys.argv[1])
    does = asyncio.run(evict(the_order)) if the_order["do"] == "evict" else memory(the_order)
    print(json.dumps({"version": str(Path(flashpool.envs.__file__).parent), "does": does}))
