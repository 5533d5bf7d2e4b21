"""An application as users have them, for a server of apps and for plain uvicorn."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, FastAPI, File, Form, Request, Response, UploadFile
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


# -- What goes wrong.


@app.get("/raise")
async def raises() -> None:
    raise ValueError("some secret")


@app.get("/raise-sync")
def raises_sync() -> None:
    raise ValueError("some secret")


@app.get("/own-error")
async def own_error() -> None:
    raise OwnError("mine")


@app.get("/unencodable")
async def unencodable() -> Any:
    return {"x": object()}


@app.get("/exit")
async def leaves() -> None:
    sys.exit(3)


@app.get("/exit-sync")
def leaves_sync() -> None:
    sys.exit(3)


@app.get("/interrupt")
async def interrupt() -> None:
    raise KeyboardInterrupt


@app.get("/cut")
async def cut() -> StreamingResponse:
    async def answer() -> AsyncIterator[bytes]:
        yield b"some of it"
        await asyncio.sleep(0.05)
        raise ValueError("in the middle")

    return StreamingResponse(answer())


@app.get("/crash")
async def crash(how: str = "exit", after: float = 0.0) -> None:
    await asyncio.sleep(after)
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    ctypes.string_at(0)


@app.get("/crash-sync")
def crash_sync() -> None:
    ctypes.string_at(0)


@app.get("/cut-by-crash")
async def cut_by_crash() -> StreamingResponse:
    async def answer() -> AsyncIterator[bytes]:
        yield b"some of it"
        await asyncio.sleep(0.05)
        os._exit(9)

    return StreamingResponse(answer())


@app.get("/loop")
async def loop() -> None:
    while True:
        pass


@app.get("/loop-sync")
def loop_sync() -> None:
    while True:
        time.sleep(0.01)


@app.get("/sleep")
async def sleep(seconds: float) -> str:
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        NOTES.append("cancelled")
        raise
    return "slept"


@app.get("/stubborn")
async def stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


@app.get("/until-gone")
async def until_gone(request: Request) -> str:
    for _ in range(2000):
        if await request.is_disconnected():
            NOTES.append("gone")
            break
        await asyncio.sleep(0.005)
    return "over"


@app.get("/block")
async def block(seconds: float) -> str:
    time.sleep(seconds)
    return "blocked"


@app.get("/fork")
def fork() -> dict[str, int]:
    child = os.fork()
    return {"forked": int(child != 0)}


@app.get("/fork-async")
async def fork_async() -> dict[str, int]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return {"forked": int(child != 0)}


@app.get("/close-descriptors")
async def close_descriptors() -> str:
    os.closerange(3, 1024)
    return "closed"


@app.get("/daemon")
def daemon() -> int:
    read, write = os.pipe()
    if not os.fork():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b"x")
        while True:
            time.sleep(60)
    os.read(read, 1)
    return os.getpid()


@app.get("/leak")
def leak(mib: int) -> int:
    held = bytearray(mib << 20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    time.sleep(60)
    return len(held)


@app.get("/print")
async def prints(text: str) -> str:
    print(text)
    print("to stderr:", text, file=sys.stderr)
    return text


async def upper(scope: Any, receive: Any, send: Any) -> None:
    """Answers while it receives."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-up", b"yes")]})
    while True:
        message = await receive()
        more = message.get("more_body", False)
        body = message.get("body", b"").upper()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        if not more:
            return


async def odd(scope: Any, receive: Any, send: Any) -> None:
    """A bare ASGI application that breaks its rules."""
    what = scope["path"].rpartition("/")[2]
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if what == "order":
        await send({"type": "http.response.body", "body": b"first"})
    elif what == "twice":
        await send(start)
        await send(start)
    elif what == "newline":
        await send({**start, "headers": [(b"x-a", b"1\r\nx-b: 2")]})
    elif what == "status":
        await send({**start, "status": 99})
    elif what == "nothing":
        return
    elif what == "longer":
        await send({**start, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"four"})
    elif what == "only-head":
        await send(start)
    await send({"type": "http.response.body", "body": b"end"})


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
app.mount("/odd", odd)
app.mount("/static", StaticFiles(directory=HERE / "static"))
