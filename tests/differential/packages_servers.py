"""Packages that serve and ask over loopback."""

from differential.programs import program, program_text

#: A server in the program's own process, and the address of a page that says its path.
LOOPBACK = """
import contextlib
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


"""

program_text(
    "requests_over_loopback",
    f"""{LOOPBACK}
def run():
    import requests

    with serving() as url, requests.Session() as session:
        session.trust_env = False
        answers = [session.get(f"{{url}}/{{number}}").text for number in range(3)]
        return [answers, session.headers["User-Agent"] == requests.utils.default_user_agent()]
""",
    group="web",
)

program_text(
    "urllib3_over_loopback",
    f"""{LOOPBACK}
def run():
    import urllib3

    with serving() as url, urllib3.PoolManager() as pool:
        return [pool.request("GET", f"{{url}}/a").data.decode(), urllib3.util.Retry(2).total]
""",
    group="web",
)

program_text(
    "httpx_over_loopback",
    f"""{LOOPBACK}
def run():
    import httpx

    with serving() as url, httpx.Client(trust_env=False) as client:
        answer = client.get(f"{{url}}/b", params={{"q": "1 2"}})
        return [answer.text, answer.status_code]
""",
    group="web",
)

program_text(
    "aiohttp_over_loopback",
    f"""{LOOPBACK}
async def run():
    import aiohttp

    with serving() as url:
        async with aiohttp.ClientSession() as session, session.get(f"{{url}}/c") as answer:
            return [await answer.text(), answer.status]
""",
    group="web",
)


@program(group="web")
def fastapi_application():
    import fastapi
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()

    @app.get("/items/{number}")
    def item(number: int, q: str = "none"):
        return {"number": number, "q": q}

    client = TestClient(app)
    return [client.get("/items/3?q=x").json(), client.get("/items/x").status_code]


@program(group="web")
def starlette_responses():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("hello"))])
    return TestClient(app).get("/").text


@program(group="web")
def flask_application():
    import flask

    app = flask.Flask("app")
    app.add_url_rule("/<name>", view_func=lambda name: {"hello": name}, endpoint="hello")
    return app.test_client().get("/ada").get_json()


# Without this it may log that a connection goes away.
@program(group="web", env={"GRPC_VERBOSITY": "NONE"})
def grpc_over_loopback():
    from concurrent import futures

    import grpc

    def answer(request, context):
        return request[::-1]

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        text = channel.unary_unary("/echo/Echo")(b"abc", timeout=20).decode()
    server.stop(0).wait()
    return text


@program(group="web")
async def websockets_over_loopback():
    import websockets

    async def echo(connection):
        async for message in connection:
            await connection.send(message.upper())

    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with websockets.connect(f"ws://127.0.0.1:{port}") as client:
            await client.send("hello")
            return await client.recv()


@program(group="web")
def uvloop_runs():
    import asyncio

    import uvloop

    async def kind():
        await asyncio.sleep(0.001)
        return type(asyncio.get_running_loop()).__module__

    return uvloop.run(kind())


@program(group="web")
def zmq_in_process():
    import zmq

    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://pair")
        two.connect("inproc://pair")
        one.send_json({"a": 1})
        return two.recv_json()
