"""An application as users have them, for a server of apps and for plain uvicorn."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import (
    BackgroundTasks,
    FastAPI,
    File,
    Form,
    Request,
    Response,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent
NOTES: list[str] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"started_by": os.getpid(), "answer": 42}
    print("the app shuts down")


app = FastAPI(title="Web", lifespan=lifespan)
COUNTS = {"requests": 0}


class Item(BaseModel):
    name: str
    price: float = 1.5


class OwnError(Exception):
    pass


@app.exception_handler(OwnError)
async def on_own(_request: Request, error: OwnError) -> JSONResponse:
    return JSONResponse({"own": str(error)}, 418)


class Stamp:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-stamp", b"yes")]}
            await send(message)

        await self.app(scope, receive, stamped)


app.add_middleware(Stamp)


def told(request: Request) -> dict[str, Any]:
    scope = request.scope
    hidden = ("host", "user-agent", "accept-encoding", "accept", "connection")
    return {
        "type": scope["type"],
        "asgi": scope["asgi"],
        "http_version": scope["http_version"],
        "scheme": scope["scheme"],
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode("latin-1"),
        "query_string": scope["query_string"].decode("latin-1"),
        "root_path": scope["root_path"],
        "client": scope["client"][0],
        "headers": [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode() not in hidden
        ],
    }


@app.api_route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
@app.get("/echo/{rest:path}", include_in_schema=False)
async def echo(request: Request) -> dict[str, Any]:
    return {**told(request), "body": (await request.body()).decode("latin-1")}


@app.get("/items/{item_id}")
async def item(item_id: int, q: str = "none", many: int = 0) -> dict[str, Any]:
    return {"item_id": item_id, "q": q, "many": many}


@app.post("/items", status_code=201)
def make(item: Item) -> Item:
    return item


@app.post("/form")
def form(name: str = Form(), age: int = Form(3)) -> dict[str, Any]:
    return {"name": name, "age": age}


@app.post("/files")
async def files(raw: bytes = File(), upload: UploadFile = File(), note: str = Form("")) -> Any:
    content = await upload.read()
    return {"raw": len(raw), "name": upload.filename, "size": len(content), "note": note}


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    size, pieces = 0, 0
    async for piece in request.stream():
        size, pieces = size + len(piece), pieces + 1
    return {"size": size}


@app.post("/slow-upload")
async def slow_upload(request: Request) -> dict[str, int]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        await asyncio.sleep(0.01)
    return {"size": size}


@app.get("/stream")
async def stream(pieces: int = 5, size: int = 10, pause: float = 0.0) -> StreamingResponse:
    async def answer() -> AsyncIterator[bytes]:
        for number in range(pieces):
            if pause:
                await asyncio.sleep(pause)
            yield bytes([65 + number % 26]) * size

    return StreamingResponse(answer(), media_type="text/plain")


@app.get("/sync-stream")
def sync_stream() -> StreamingResponse:
    return StreamingResponse((f"{number}\n" for number in range(100)), media_type="text/plain")


@app.get("/large")
async def large(size: int) -> Response:
    return Response(b"x" * size)


@app.get("/events")
async def events() -> StreamingResponse:
    async def answer() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(answer(), media_type="text/event-stream")


@app.get("/cookies")
async def cookies(request: Request, response: Response) -> dict[str, str]:
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return dict(request.cookies)


@app.get("/redirect")
async def redirect() -> RedirectResponse:
    return RedirectResponse("/items/7?q=there", 303)


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(HERE / "static" / "page.txt")


@app.get("/duplicates")
async def duplicates() -> Response:
    response = Response(b"two")
    response.raw_headers += [(b"X-Twice", b"1"), (b"x-twice", b"2"), (b"Date", b"some day")]
    return response


@app.get("/no-content", status_code=204)
async def no_content() -> None:
    return None


@app.get("/background")
async def background(tasks: BackgroundTasks, note: str) -> dict[str, str]:
    async def later() -> None:
        await asyncio.sleep(0.1)
        NOTES.append(note)

    tasks.add_task(later)
    return {"will": note}


@app.get("/notes")
async def notes() -> list[str]:
    return NOTES


@app.get("/state")
async def state(request: Request) -> dict[str, Any]:
    COUNTS["requests"] += 1
    found = request.state
    return {"answer": found.answer, "same": found.started_by == os.getpid(), **COUNTS}


@app.get("/pid")
def pid() -> int:
    return os.getpid()


@app.get("/sleep/{seconds}")
async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@app.get("/sync-sleep/{seconds}")
def sync_sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.get("/die")
async def die() -> None:
    os._exit(5)


# -- WebSockets.

SOCKETS: list[dict[str, Any]] = []


@app.websocket("/ws/echo")
async def ws_echo(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            await socket.send({**message, "type": "websocket.send"})
    except WebSocketDisconnect as end:
        SOCKETS.append({"code": end.code, "reason": end.reason or ""})


@app.get("/ws/ends")
async def ws_ends() -> list[dict[str, Any]]:
    found, SOCKETS[:] = list(SOCKETS), []
    return found


@app.websocket("/ws/scope/{name}")
async def ws_scope(socket: WebSocket, name: str, q: str = "none") -> None:
    await socket.accept(headers=[(b"X-Own", b"a"), (b"x-own", b"b")])
    scope = socket.scope
    shown = {key: scope[key] for key in ("type", "asgi", "http_version", "scheme", "path")}
    shown |= {"extensions": scope["extensions"], "subprotocols": scope["subprotocols"]}
    shown |= {"raw_path": scope["raw_path"].decode(), "query": scope["query_string"].decode()}
    shown |= {"answer": socket.state.answer, "name": name, "q": q, "client": scope["client"][0]}
    await socket.send_json(shown)
    await socket.close(4001, "that is all")


@app.websocket("/ws/subprotocol")
async def ws_subprotocol(socket: WebSocket) -> None:
    await socket.accept(subprotocol=socket.scope["subprotocols"][-1])
    await socket.close()


@app.websocket("/ws/refuse")
async def ws_refuse(socket: WebSocket) -> None:
    await socket.close(4003, "no")


@app.websocket("/ws/deny")
async def ws_deny(socket: WebSocket) -> None:
    response = JSONResponse({"not": "you"}, 401, {"x-why": "because"})
    await socket.send_denial_response(response)


@app.websocket("/ws/raise-before")
async def ws_raise_before(socket: WebSocket) -> None:
    raise ValueError("some secret")


@app.websocket("/ws/raise")
async def ws_raise(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("first")
    raise ValueError("some secret")


@app.websocket("/ws/return")
async def ws_return(socket: WebSocket) -> None:
    await socket.accept()


@app.websocket("/ws/send")
async def ws_send(socket: WebSocket, size: int, count: int = 1) -> None:
    await socket.accept()
    for number in range(count):
        await socket.send_bytes(bytes([65 + number % 26]) * size)
    await socket.close()


@app.websocket("/ws/two-tasks")
async def ws_two_tasks(socket: WebSocket) -> None:
    await socket.accept()
    await asyncio.gather(*(socket.send_text(letter * 200_000) for letter in "abcd"))
    await socket.close()


# -- Errors; routes that kill the process are in handler_faults.


@app.get("/raise")
async def raises() -> None:
    raise ValueError("some secret")


@app.get("/raise-sync")
def raises_sync() -> None:
    raise ValueError("some secret")


@app.get("/exit")
async def leaves() -> None:
    sys.exit(3)


@app.get("/exit-sync")
def leaves_sync() -> None:
    sys.exit(3)


@app.get("/own-error")
async def own_error() -> None:
    raise OwnError("mine")


@app.get("/unencodable")
async def unencodable() -> Any:
    return {"x": object()}


@app.get("/print")
async def prints(text: str) -> str:
    print(text)
    print("to stderr:", text, file=sys.stderr)
    return text


@app.get("/print-everywhere")
async def prints_everywhere(tasks: BackgroundTasks, text: str) -> str:
    async def later() -> None:
        await asyncio.sleep(0.05)
        print(f"{text} behind its answer")
        print(f"{text} without an end", end="")

    def in_a_thread() -> None:
        logging.warning("%s in a thread", text)  # noqa: LOG015 - as users do

    tasks.add_task(later)
    print(f"{text} in", "parts")
    await asyncio.to_thread(in_a_thread)
    os.write(1, f"{text} past Python\n".encode())
    return text


@app.get("/own-id")
async def own_id(response: Response) -> None:
    response.headers["x-request-id"] = "the app's"


async def upper(scope: Any, receive: Any, send: Any) -> None:
    """Send the answer while the body still arrives."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-up", b"yes")]})
    while True:
        message = await receive()
        more = message.get("more_body", False)
        body = message.get("body", b"").upper()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        if not more:
            return


@app.post("/execute")
async def execute() -> str:
    return "this runs code"


inner = FastAPI()


@inner.post("/execute")
@inner.get("/hello")
async def hello(request: Request) -> dict[str, Any]:
    return {"root_path": request.scope["root_path"], "path": request.scope["path"]}


app.mount("/api", inner)
app.mount("/upper", upper)
app.mount("/static", StaticFiles(directory=HERE / "static"))
