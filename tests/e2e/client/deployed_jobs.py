"""Deployed queue resources through the real client, as its users call them; run by its interpreter.

Run in the project's folder. Prints one JSON object, last of all: call -> what came of it.
"""

import asyncio
import json
import sys

sys.path.insert(0, "")

from classes import Counter
from conc import sync_conc
from plain import plain


async def outcome(awaitable):
    try:
        return {"value": await awaitable}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


async def main():
    counter = Counter()
    found = {
        "value": await outcome(plain("value", {"a": [1, None]})),
        "nothing": await outcome(plain()),
        "empty": await outcome(plain("value", {})),
        "fail": await outcome(plain("fail", "no luck")),
        "set": await outcome(plain("set")),
        "exit": await outcome(plain("exit")),
        "die": await outcome(plain("die")),
        "after": await outcome(plain("count")),
        "first": await outcome(counter.increase(2)),
        "second": await outcome(counter.increase()),
        "get": await outcome(counter.get()),
        "unknown": await outcome(counter.increase(nothing=1)),
    }
    together = await asyncio.gather(*(outcome(sync_conc(seconds=0.2)) for _ in range(3)))
    found["together"] = {"value": len({one["value"] for one in together})}
    print(json.dumps(found))


asyncio.run(main())
