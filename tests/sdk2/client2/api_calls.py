"""Calls of APIs through SDK 2.0, unmodified; run by its interpreter: MODULE CASES.

CASES is JSON: a list of [name, object, verb, path, body]; each URL of an endpoint leads to API_URL
(redirect/sitecustomize.py). Outside of a dev session, the APIs are deployed ones. Cases that follow
each other and whose names begin with `meets` run together. Prints, last of all, one JSON object:
name -> what came of it.
"""

import importlib.util
import itertools
import json
import os
import sys
import threading

from runpod.apps.targets import LiveTarget

MODULE, CASES = sys.argv[1:]


def load():
    spec = importlib.util.spec_from_file_location("user_app", MODULE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_app"] = module
    spec.loader.exec_module(module)
    if os.environ.get("RUNPOD_DEV_SESSION"):
        for name in module.app.resources:
            module.app._dev_targets[name] = LiveTarget("ep", name)
    return module


def run(module, told, name, what, verb, path, body):
    try:
        told[name] = {"value": getattr(getattr(module, what), verb)(path, body)}
    except BaseException as error:
        text = f"{getattr(error, 'status', '')} {error}"
        told[name] = {"raised": type(error).__name__, "text": text[:4000]}


def main():
    module, told = load(), {}
    for together, cases in itertools.groupby(
        json.loads(CASES), lambda case: case[0][:5] == "meets"
    ):
        if not together:
            for case in cases:
                run(module, told, *case)
            continue
        threads = [threading.Thread(target=run, args=(module, told, *case)) for case in cases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print("\n" + json.dumps(told))


main()
