"""Calls with packages of the real index through the client's stub: URL.

Prints one JSON list: for each call what it returned, or what was raised.
"""

import asyncio
import json
import os
import sys
from types import SimpleNamespace

os.environ["RUNPOD_API_KEY"] = "test-key"

from runpod_flash.stubs.load_balancer_sls import LoadBalancerSlsStub


def fetches(url):
    import shutil
    import subprocess

    import requests

    curl = subprocess.run([shutil.which("curl"), "--version"], capture_output=True, check=True)
    return [requests.get(url + "/ping").json(), curl.stdout.decode().split()[0]]


async def outcome(stub, accelerate):
    try:
        return await stub(fetches, ["requests"], ["curl"], accelerate, sys.argv[1])
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:3000]


async def main():
    stub = LoadBalancerSlsStub(SimpleNamespace(name="local", endpoint_url=sys.argv[1]))
    return [await outcome(stub, accelerate) for accelerate in (True, False)]


json.dump(asyncio.run(main()), sys.stdout)
