"""A handler that awaits whatever it calls, as the client makes them for several jobs at a time."""

import traceback

import work


def function(**given):
    return getattr(work, given.pop("do"))(**given)


async def handler(job):
    given = job.get("input", {})
    given.pop("__empty", None)
    try:
        return await function(**given)
    except Exception as error:
        return {"error": str(error), "traceback": traceback.format_exc()}
