"""The application that the rows of deployed apps ask, and that their reference serves."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

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
