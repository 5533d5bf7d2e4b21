"""Tasks through SDK 2.0; run by its interpreter: MODULE URL TOKEN CASES.

Only what leads to the cloud is replaced: pods are not made, and their address is URL. CASES is
JSON: a list of [name, function, how, arguments]. Prints, last of all, one JSON object: name -> what
came of it.
"""

import importlib.util
import json
import sys

from runpod.apps import tasks
from runpod.apps.api import AppsApiClient

MODULE, URL, TOKEN, CASES = sys.argv[1:]


async def made(self, pod, is_cpu=True):
    return {"id": "pod1"}


async def ended(self, pod):
    return None


AppsApiClient.deploy_task_pod = made
AppsApiClient.terminate_pod = ended
tasks._proxy_url = lambda pod: URL
tasks.secrets.token_urlsafe = lambda size: TOKEN
tasks.READY_POLL_INTERVAL = tasks.RESULT_POLL_INTERVAL = 0.1


def load():
    spec = importlib.util.spec_from_file_location("user_app", MODULE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_app"] = module
    spec.loader.exec_module(module)
    return module


def call(handle, how, arguments):
    if how == "remote":
        return handle.remote(*arguments)
    job = handle.spawn(*arguments)
    return tasks_loop(job.wait(timeout=float(how)))


def tasks_loop(coroutine):
    from runpod.apps.context import block

    return block(coroutine)


def main():
    module, told = load(), {}
    for name, function, how, arguments in json.loads(CASES):
        try:
            told[name] = {"value": repr(call(getattr(module, function), how, arguments))}
        except BaseException as error:
            told[name] = {"raised": type(error).__name__, "text": str(error)[:4000]}
    print("\n" + json.dumps(told))


main()
