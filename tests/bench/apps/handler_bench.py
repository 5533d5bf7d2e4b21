"""The application that the rows of deployed apps ask, and that their reference serves."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import victims

app = FastAPI()


class Order(BaseModel):
    name: str
    items: list[int]


@app.get("/noop")
async def noop() -> dict[str, bool]:
    return {"success": True}


@app.post("/order")
async def order(order: Order) -> dict[str, object]:
    return {"success": True, "name": order.name, "sum": sum(order.items)}


@app.get("/pause")
async def pause() -> dict[str, bool]:
    await asyncio.sleep(0.005)
    return {"success": True}


PIECE = b"x" * 65_536
BEGIN, END = b'{"success":true,"data":"', b'"}'


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield BEGIN
        for _ in range(16):
            yield PIECE
        yield END

    size = len(BEGIN) + 16 * len(PIECE) + len(END)
    return StreamingResponse(pieces(), headers={"content-length": str(size)})


@app.post("/upload")
async def upload(request: Request) -> dict[str, object]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return {"success": True, "size": size}


class Echo(Response):
    """The request's body; a `StreamingResponse` reads messages of it itself, to hear of the client's end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            body = message.get("body", b"")
            await send({"type": "http.response.body", "body": body, "more_body": more})


@app.post("/both-ways")
async def both_ways() -> Echo:
    return Echo()


@app.get("/pid")
async def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


@app.get("/isolated")
async def isolated() -> dict[str, bool]:
    return {"success": True}


@app.get("/compute")
async def compute() -> dict[str, object]:
    return {"success": True, "sum": sum(n * n for n in range(50_000))}


@app.get("/block")
async def block(seconds: float) -> dict[str, bool]:
    time.sleep(seconds)
    return {"success": True}


@app.get("/sleep")
def sleep(path: str) -> None:
    victims.sleep(path)


@app.get("/stubborn")
async def stubborn(path: str) -> None:
    victims.stubborn(path)
