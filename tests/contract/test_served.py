"""Requests over HTTP to a server that knows its backend by the protocol only."""

import asyncio
import base64
import json
import pickle
import sys

from support.frontends.wire import run, serving
from support.thread_backend import ThreadBackend
from support.waiting import until


def request(code, *args, **fields):
    pickled = [base64.b64encode(pickle.dumps(one)).decode() for one in args]
    return json.dumps(
        {"function_name": "f", "function_code": code, "args": pickled, **fields}
    ).encode()


def value(reply):
    body = reply.json()
    assert (reply.status, body["success"]) == (200, True), body
    return pickle.loads(base64.b64decode(body["result"]))


def test_requests_work_over_the_thread_backend():
    main = sys.modules["__main__"]

    async def test():
        backend = ThreadBackend(2)
        async with serving(backend) as client:
            assert (await client.get("/ping")).status == 200
            replies = await asyncio.gather(
                *(client.execute(request("def f(n): return n + 1", n)) for n in range(20))
            )
            assert [value(one) for one in replies] == list(range(1, 21))

            coroutine = request("async def f(): return 'async'", serialization_format="json")
            assert (await client.execute(coroutine)).json()["json_result"] == "async"
            items = await client.execute(request("def f():\n yield 1\n yield 2"))
            assert value(items) == [1, 2]

            failed = (await client.execute(request("def f(): raise KeyError('k')"))).json()
            assert (failed["success"], failed["error_type"]) == (False, "KeyError")
            assert isinstance(pickle.loads(base64.b64decode(failed["exception"])), KeyError)

            for fields in ({"function_name": "g"}, {"dependencies": ["numpy"]}, {"gpus": 1}):
                refused = await client.execute(request("def f(): 1", **fields))
                assert (refused.status, refused.json()["error_type"]) == (422, "InvalidRequest")

            backend.draining = True
            assert (await client.execute(request("def f(): 1"))).status == 503
            assert (await client.get("/ping")).status == 503
        assert backend.stats().outcomes == {"ok": 22, "UserException": 1, "InvalidRequest": 1}
        assert not backend.threads

    run(test())
    assert sys.modules["__main__"] is main


def test_a_client_that_disconnects_cancels_its_call():
    async def test():
        backend = ThreadBackend(1)
        async with serving(backend) as client:
            slow = request("import time\ndef f(): time.sleep(0.5)")
            gone = asyncio.ensure_future(client.execute(slow))
            await until(lambda: backend.threads)
            gone.cancel()
            await until(lambda: backend.recorder.outcomes == {"Cancelled": 1})
            # A thread cannot be killed, so the next call waits for the slot.
            assert backend.threads
            assert value(await client.execute(request("def f(): return 1"))) == 1

    run(test())
