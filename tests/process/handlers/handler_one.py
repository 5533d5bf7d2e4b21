"""A plain handler, as the client generates for one job at a time."""

import traceback

import work

COUNT = work.count


def function(**given):
    return getattr(work, given.pop("do"))(**given)


def handler(job):
    given = job["input"]
    if not isinstance(given, dict):
        return {"success": False, "error": f"no dictionary: {type(given).__name__}"}
    given.pop("__empty", None)
    try:
        return function(**given) if given else sorted(job)
    except Exception as error:
        return {"success": False, "error": str(error), "traceback": traceback.format_exc()}
