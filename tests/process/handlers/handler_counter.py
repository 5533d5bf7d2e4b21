"""A handler of an instance that awaits each coroutine it gets from a method."""

import traceback

import work

_instance = work.Counter()


async def handler(job):
    given = job.get("input", {})
    method = getattr(_instance, given.pop("method"))
    try:
        return await method(**given)
    except Exception as error:
        return {"error": str(error), "traceback": traceback.format_exc()}
