"""A web application that is served like the load-balanced resource of a deployed app.

    .venv/bin/flashpool serve app examples/app
    curl -s http://127.0.0.1:8000/hello/Ada

`flash build` makes such a folder from a project, with a manifest beside it. Without a manifest,
each handler_<resource>.py with an ASGI application named `app` is a resource.
"""

import os

from fastapi import FastAPI

app = FastAPI(title="hello")


@app.get("/hello/{name}")
def hello(name: str) -> dict[str, str]:
    """Greet somebody."""
    return {"hello": name}


@app.post("/crash")
def crash() -> None:
    """End the process of the app: this request is answered with 502, and the app loads again."""
    os._exit(7)
