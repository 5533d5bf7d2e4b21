"""A user's program for SDK 2.0: APIs of a dev session."""

import os
import sys
import time

from runpod import App
from runpod.apps import delete, get, init, patch, post, put

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

    @post("/meets")
    def meets(self, body):
        """Return when another request runs at the same time."""
        open(body["own"], "x").close()
        end = time.monotonic() + 60
        while not os.path.exists(body["other"]):
            if time.monotonic() > end:
                raise TimeoutError(body["other"])
            time.sleep(0.02)
        return "met"

    @put("/body")
    def put_body(self, body):
        return ["put", body]

    @patch("/body")
    async def patch_body(self, body):
        return ["patch", body]

    @delete("/body")
    def delete_nothing(self):
        return "deleted"

    @post("/nothing")
    def post_nothing(self):
        return None

    @get("/values/{kind}")
    def values(self, kind):
        if kind == "response":
            from fastapi.responses import PlainTextResponse

            return PlainTextResponse("not JSON", headers={"x-own": "1"})
        found = {
            "set": {1},
            "empty": {},
            "object": object(),
            "nan": float("nan"),
            "large": "x" * 11_000_000,
        }
        return found[kind]

    @get("/facts")
    def facts(self):
        names = ("TAG", "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID")
        return {"name": __name__, **{name: os.environ.get(name) for name in names}}

    @get("/pid")
    def pid(self):
        return os.getpid()

    @post("/ends")
    def ends(self, body):
        if body["how"] == "raise":
            raise ValueError("no such luck")
        if body["how"] == "exit":
            sys.exit(3)
        if body["how"] == "segfault":
            os.kill(os.getpid(), 11)
        while body["how"] == "loop":
            pass
        os._exit(7)


@app.api(cpu=CPU, name="with-factory")
def web():
    from fastapi import FastAPI, Request, WebSocket
    from fastapi.responses import StreamingResponse

    server = FastAPI()

    @server.get("/pieces")
    def pieces():
        return StreamingResponse(iter(["a", "b"]), media_type="text/plain")

    @server.post("/form")
    async def form(request: Request):
        return dict(await request.form())

    @server.post("/execute")
    def own_execute():
        return "the user's own"

    @server.websocket("/echo")
    async def echo(socket: WebSocket):
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    return server
