"""An async handler, as the client generates for several jobs at a time."""

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
