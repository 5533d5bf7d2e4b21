"""What a user writes with SDK 2.0: APIs of a dev session."""

import os
import sys
import time

from runpod import App
from runpod.apps import get, init, post

app = App("shop")
CPU = "cpu3c-2-4"


@app.api(cpu=CPU)
class Counter:
    @init
    def setup(self):
        self.n = 100

    @post("/add")
    def add(self, body):
        self.n += body["by"]
        return {"n": self.n}

    @get("/n")
    async def value(self):
        return self.n

    @get("/items/{item}")
    def item(self, item: int, double: bool = False):
        return item * (2 if double else 1)

    @post("/items/{item}")
    def keep(self, item: int, body: dict):
        return {"item": item, **body}

    @post("/slow")
    def slow(self, body):
        time.sleep(body["s"])
        return "slept"

    @get("/pid")
    def pid(self):
        return os.getpid()

    @post("/ends")
    def ends(self, body):
        if body["how"] == "raise":
            raise ValueError("no such luck")
        if body["how"] == "exit":
            sys.exit(3)
        os._exit(7)


@app.api(cpu=CPU, name="with-factory")
def web():
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    server = FastAPI()

    @server.get("/pieces")
    def pieces():
        return StreamingResponse(iter(["a", "b"]), media_type="text/plain")

    return server
