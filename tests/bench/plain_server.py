"""A FastAPI application with a route that does nothing, on our listener with its settings.

``python plain_server.py``: prints its port, and serves until its input ends.
"""

import asyncio
import sys

from fastapi import FastAPI

from flashpool.frontends.http_server.listener import Listener, bind
from flashpool.frontends.server_process import run_loop
from flashpool.frontends.settings.table import Settings

app = FastAPI()


@app.post("/execute")
async def execute() -> dict[str, bool]:
    return {"success": True}


async def serve() -> None:
    listener = Listener(app, Settings.from_environ({}))
    sock = bind("127.0.0.1", 0, "the port")
    print(sock.getsockname()[1], flush=True)
    serving = asyncio.ensure_future(listener.serve(sockets=[sock]))
    await asyncio.to_thread(sys.stdin.read)
    listener.should_exit = True
    await serving


if __name__ == "__main__":
    run_loop(serve())
