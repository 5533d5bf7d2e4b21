"""The cost of observability: calls a second with every such feature turned on."""

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator

from bench import http_load
from bench.context import Bench, in_turn
from bench.figures import Row, compared
from bench.lb_server import LbServer, serving

CONNECTIONS = 16
LOAD_S = 2.0
#: Intervals of the page and of a Prometheus; the default interval of the latter is longer.
ASK_S = 1.0
TOKEN = "the-operator-s"


class _Collector(http.server.BaseHTTPRequestHandler):
    """Accepts traces and discards them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextlib.contextmanager
def _collecting() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{collector.server_port}"
        finally:
            collector.shutdown()
            thread.join()


@contextlib.contextmanager
def _watching(server: LbServer) -> Iterator[None]:
    """Request figures as operators do, until the block ends."""
    over = threading.Event()

    def ask() -> None:
        asked = http.client.HTTPConnection(*server.admin, timeout=30)
        with contextlib.closing(asked):
            while not over.wait(ASK_S):
                for path in ("/stats", "/metrics", "/calls"):
                    asked.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
                    asked.getresponse().read()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cost(bench: Bench) -> Row:
    """No-ops a second of a server with everything on, beside one of default settings."""
    plain = bench.server
    with contextlib.ExitStack() as stack:
        folder = bench.folder / "watched"
        for one in (folder, folder / "volume"):
            one.mkdir(exist_ok=True)
        variables = {
            "FLASHPOOL_ADMIN_TOKEN": TOKEN,
            "FLASHPOOL_STATE_DIR": str(folder / "state"),
            "FLASHPOOL_VOLUME": str(folder / "volume"),
            "FLASHPOOL_LOG_FORMAT": "json",
            "FLASHPOOL_LOG_OUTPUT_KB_S": "64",
            "FLASHPOOL_ACCESS_LOG": "yes",
            "FLASHPOOL_KEEP_FAILED_MB": "10",
            "FLASHPOOL_TELEMETRY": "on",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(_collecting()),
        }
        watched = stack.enter_context(serving(folder, **variables))
        stack.enter_context(_watching(watched))
        rates: dict[LbServer, list[float]] = {plain: [], watched: []}

        def load(server: LbServer, seconds: float = LOAD_S) -> float:
            return http_load.saturate(server.address, http_load.NOOP, CONNECTIONS, seconds).rate

        for server in rates:
            load(server, 1.0)
        for number in bench.turns("watched"):
            in_turn(
                number,
                lambda: rates[plain].append(load(plain)),
                lambda: rates[watched].append(load(watched)),
            )
    return compared(
        "isolated no-op calls over /execute, with logs, traces, replay and scraping on",
        "/s",
        rates[watched],
        "the same with default settings",
        rates[plain],
        at_least=0.97,
    )
