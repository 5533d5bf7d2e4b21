"""Calls of queue functions through SDK 2.0, unmodified; run by its interpreter: MODULE CASES.

MODULE is a file of an app. Its functions are of a dev session, and their jobs go to the endpoint
`ep-local`. CASES is JSON: a list of [name, function, how, arguments]. Prints, last of all, one JSON
object: name -> what came of it.
"""

import importlib.util
import json
import sys
import threading

from runpod.apps.targets import LiveTarget

MODULE, CASES = sys.argv[1:]
ENDPOINT = "ep-local"


def load():
    spec = importlib.util.spec_from_file_location("user_app", MODULE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_app"] = module
    spec.loader.exec_module(module)
    for name in module.app.resources:
        module.app._dev_targets[name] = LiveTarget(ENDPOINT, name)
    return module


def call(handle, how, arguments):
    if how == "remote":
        return handle.remote(*arguments)
    if how == "stream":
        return list(handle.stream(*arguments))
    if how == "spawn":
        return handle.spawn(*arguments).result()
    if how == "cut":
        return handle.with_options(execution_timeout=1500).remote(*arguments)
    raise ValueError(how)


def run(module, told, name, function, how, arguments):
    try:
        told[name] = {"value": call(getattr(module, function), how, arguments)}
    except BaseException as error:
        told[name] = {"raised": type(error).__name__, "text": str(error)[:4000]}


def main():
    module, told = load(), {}
    threads = [
        threading.Thread(target=run, args=(module, told, *case)) for case in json.loads(CASES)
    ]
    for start in range(0, len(threads), 8):
        batch = threads[start : start + 8]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()
    print("\n" + json.dumps(told))


main()
