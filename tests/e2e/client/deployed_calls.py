"""Calls of a deployed app's routes through the real client; run by the client's interpreter: URL.

The client's own address for such calls is fixed: its transport is led to URL instead. Prints one JSON
object: what came of each call.
"""

import asyncio
import json
import os
import sys
from types import SimpleNamespace

os.environ["RUNPOD_API_KEY"] = "test-key"

import httpx
from runpod_flash import flash_sentinel
from runpod_flash.stubs.load_balancer_sls import LoadBalancerSlsStub

(URL,) = sys.argv[1:]
HERE = httpx.URL(URL)

plain = httpx.AsyncHTTPTransport.handle_async_request


async def led_here(self, request):
    request.url = request.url.copy_with(scheme="http", host=HERE.host, port=HERE.port)
    return await plain(self, request)


httpx.AsyncHTTPTransport.handle_async_request = led_here


def train(steps):
    raise AssertionError("it runs there")


train.__remote_config__ = {"method": "POST", "path": "/train"}


def code():
    return "it ran"


async def outcome(call):
    try:
        return {"value": await call}
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}


async def main():
    ask = flash_sentinel.sentinel_lb_request
    resource = SimpleNamespace(name="shop", endpoint_url=URL)
    stub = LoadBalancerSlsStub(resource)
    calls = {
        "get": ask("app", "env", "shop", "GET", "/items/7"),
        "post": ask("app", "env", "shop", "POST", "/train", {"steps": 3}),
        "missing": ask("app", "env", "shop", "GET", "/nothing"),
        "wrong": ask("app", "env", "shop", "POST", "/train", {"steps": "many"}),
        "route": stub(train, None, None, False, 5),
        "code": stub(code, None, None, False),
    }
    print(json.dumps({name: await outcome(call) for name, call in calls.items()}))


asyncio.run(main())
