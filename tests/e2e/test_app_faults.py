"""Faults in a deployed app: each has its own answer, and other requests are not affected."""

import concurrent.futures
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from e2e.app_servers import AppServer, serving_app
from e2e.server import FLASHPOOL, alive, until

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

#: Limits of the app: one for requests that must exceed it, one for the others.
LIMIT_S = 3.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    folder = tmp_path_factory.mktemp("faults")
    variables = {"FLASHPOOL_CALL_TIMEOUT_S": str(LIMIT_S), "FLASHPOOL_GRACE_S": "0.5"}
    with faulty(folder, **variables) as found:
        yield found


def faulty(folder: Path, **variables: str) -> "contextlib.AbstractContextManager[AppServer]":
    return serving_app(folder, resource="faults", **variables)


def pid(server: AppServer) -> int:
    return int(server.http.get("/pid").json())


def in_background(server: AppServer, path: str, **options: Any) -> "concurrent.futures.Future[Any]":
    """Send a request on a connection of its own."""
    found: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def ask() -> None:
        try:
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
                found.set_result(http.get(path, **options))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=ask).start()
    return found


@pytest.mark.parametrize("path", ["/leave", "/leave-in-a-thread", "/interrupt"])
def test_sys_exit_ends_that_request_and_nothing_else(server: AppServer, path: str) -> None:
    before = pid(server)
    response = server.http.get(path)
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert pid(server) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/crash", "exit code 7"),
        ("/crash?how=kill", "SIGKILL"),
        ("/crash?how=segfault", "SIGSEGV"),
        ("/crash?how=thread", "SIGSEGV"),
    ],
)
def test_a_crash_is_502_with_its_cause_and_a_successor_answers(
    server: AppServer, path: str, words: str
) -> None:
    before = pid(server)
    response = server.http.get(path)
    assert response.status_code == 502
    assert response.json()["error_type"] == "WorkerCrashed"
    assert words in response.json()["detail"]
    assert response.headers["retry-after"] == "1"
    assert pid(server) != before


@contextlib.contextmanager
def said(server: AppServer, *texts: str) -> Iterator[None]:
    """Wait until the app has printed these lines after the block."""
    before = [server.log().count(f": {text} [request ") for text in texts]
    yield
    until(
        lambda: all(
            server.log().count(f": {text} [request ") > number
            for text, number in zip(texts, before, strict=True)
        )
    )


def test_a_crash_loses_requests_that_had_begun_in_its_worker(server: AppServer) -> None:
    with said(server, "sleeps 60"):
        neighbour = in_background(server, "/sleep?seconds=60")
    assert server.http.get("/crash").status_code == 502
    assert neighbour.result(60).status_code == 502


def test_stats_show_the_last_death(server: AppServer) -> None:
    before = server.stats()["apps"][0]
    assert server.http.get("/crash").status_code == 502
    worker = pid(server)
    after = server.stats()["apps"][0]
    assert (after["app"], after["state"]) == ("faults", "served")
    assert after["deaths"] == before["deaths"] + 1
    assert "exit code 7" in after["last_death"]
    (row,) = after["workers"]
    assert (row["pid"], row["state"]) == (worker, "ready")
    assert row["generation"] > before["workers"][0]["generation"]


def test_workers_lost_with_their_zygote_are_replaced(server: AppServer) -> None:
    worker = psutil.Process(pid(server))
    with said(server, "sleeps 62"):
        begun = in_background(server, "/sleep?seconds=62")
    zygote = worker.parent()
    assert zygote is not None
    zygote.kill()
    assert begun.result(60).status_code == 502
    assert pid(server) != worker.pid


def test_requests_that_had_not_begun_go_to_the_successor(server: AppServer) -> None:
    worker = psutil.Process(pid(server))
    with said(server, "sleeps 61"):
        begun = in_background(server, "/sleep?seconds=61")
    worker.suspend()  # requests sent now wait in its channel
    behind = [in_background(server, f"/say?text={number}") for number in range(5)]
    time.sleep(0.5)
    worker.kill()
    assert begun.result(60).status_code == 502
    assert [one.result(60).json() for one in behind] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("path", ["/loop", "/loop-in-a-thread", "/stubborn"])
def test_an_endless_request_gets_504_and_ends_its_worker(server: AppServer, path: str) -> None:
    before = pid(server)
    response = server.http.get(path)
    assert response.status_code == 504
    assert {**response.json(), "detail": ""} == {
        "detail": "",
        "error_type": "Timeout",
        "phase": "run",
    }
    assert pid(server) != before
    until(lambda: not psutil.pid_exists(before))


def test_a_late_async_request_is_cancelled_and_its_worker_stays(server: AppServer) -> None:
    before = pid(server)
    assert server.http.get("/sleep?seconds=60").status_code == 504
    assert "cancelled 60" in server.http.get("/notes").json()
    assert pid(server) == before


def test_other_requests_of_a_killed_worker_are_lost(server: AppServer) -> None:
    with said(server, "is stubborn"):
        culprit = in_background(server, "/stubborn")
    with said(server, "sleeps 60", "sleeps 50"):
        sibling = in_background(server, "/sleep?seconds=60")
        posted = in_background(server, "/sleep?seconds=50")
    assert culprit.result(60).status_code == 504
    for one in (sibling, posted):
        response = one.result(60)
        # The request may have reached its own limit.
        assert (response.status_code, response.json()["error_type"]) in (
            (503, "ResidentLost"),
            (504, "Timeout"),
        )


def test_ping_is_answered_while_the_app_is_blocked(server: AppServer) -> None:
    pid(server)
    with said(server, "blocks 1.5"):
        blocked = in_background(server, "/block?seconds=1.5")
    for _ in range(20):
        assert server.http.get("/ping").status_code == 200
    assert blocked.result(60).json() == "blocked"


def test_a_stream_that_continues_is_not_cut_by_the_limit(server: AppServer) -> None:
    pieces = int(LIMIT_S / 0.5) + 3
    response = server.http.get(f"/stream?pieces={pieces}&pause=0.5&size=1")
    assert len(response.content) == pieces


@pytest.mark.parametrize("path", ["/cut?how=raise", "/cut?how=return", "/cut?how=crash"])
def test_an_incomplete_answer_does_not_look_complete(server: AppServer, path: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        server.http.get(path)
    assert server.http.get("/say?text=1").status_code == 200


@pytest.mark.parametrize(
    "what",
    [
        *("order", "twice", "newline", "name", "status"),
        *("longer", "shorter", "type", "nothing", "only-head"),
    ],
)
def test_invalid_asgi_messages_get_500_and_are_logged(server: AppServer, what: str) -> None:
    before = server.log().count("('GET /odd')")
    response = server.http.get(f"/odd?what={what}")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    until(lambda: server.log().count("('GET /odd')") == before + 1)


@pytest.mark.parametrize(("how", "status"), [("raise", 500), ("crash", 502)])
def test_a_head_alone_is_not_sent_before_the_body(server: AppServer, how: str, status: int) -> None:
    assert server.http.get(f"/head-then?how={how}").status_code == status


def test_sys_exit_in_a_task_of_its_own_does_not_end_the_worker(server: AppServer) -> None:
    before = pid(server)
    assert server.http.get("/leave-in-a-task").status_code in (200, 500)
    assert pid(server) == before


def test_a_task_that_continues_after_its_answer_may_finish(server: AppServer) -> None:
    assert server.http.get("/linger?seconds=0.3").text == "answered"
    until(lambda: "lingered" in server.http.get("/notes").json())


def test_a_forked_route_answers_once(server: AppServer) -> None:
    for path in ("/fork", "/fork-in-a-thread"):
        before = pid(server)
        assert server.http.get(path).json() == {"forked": 1}
        assert pid(server) == before


def test_closing_all_descriptors_gets_an_answer_or_502(server: AppServer) -> None:
    assert server.http.get("/close-descriptors").status_code in (200, 502)
    assert server.http.get("/say?text=1").status_code == 200


def test_garbage_on_the_channel_ends_its_worker(server: AppServer) -> None:
    before = pid(server)
    response = server.http.get("/garble")
    assert (response.status_code, response.json()["error_type"]) == (502, "WorkerCrashed")
    assert "other than flashpool's runtime wrote" in response.json()["detail"]
    assert pid(server) != before


def test_a_daemon_is_killed_with_its_worker(server: AppServer) -> None:
    worker = server.http.get("/daemon").json()
    children = psutil.Process(worker).children(recursive=True)
    assert children
    assert server.http.get("/crash").status_code == 502
    until(lambda: not alive(children))


def test_the_app_is_notified_when_a_client_disconnects(server: AppServer) -> None:
    address = "127.0.0.1", server.port
    with socket.create_connection(address, timeout=30) as sock, said(server, "waits"):
        sock.sendall(b"GET /until-gone HTTP/1.1\r\nhost: x\r\n\r\n")
    until(lambda: "gone" in server.http.get("/notes").json())


def test_a_disconnect_within_an_unread_body_is_noticed(
    tmp_path: Path,
) -> None:
    with faulty(tmp_path, FLASHPOOL_GRACE_S="2") as server:
        address = "127.0.0.1", server.port
        with socket.create_connection(address, timeout=30) as sock, said(server, "sleeps 500"):
            sock.sendall(b"POST /sleep?seconds=500 HTTP/1.1\r\nhost: x\r\n")
            # More than the server reads, and no more than the kernel buffers: the disconnect
            # arrives behind all the data.
            sock.sendall(b"content-length: 9000000\r\n\r\n" + b"x" * 400_000)
        until(lambda: "cancelled 500" in server.http.get("/notes").json())


@pytest.mark.parametrize("name", ["Flashpool-Timeout", "X-Flashpool-Timeout-S"])
def test_a_client_may_set_a_shorter_limit(server: AppServer, name: str) -> None:
    before = pid(server)
    response = server.http.get("/sleep?seconds=2", headers={name: "0.2"})
    assert (response.status_code, response.json()["phase"]) == (504, "client")
    echoed = server.http.get("/echo", headers={name: "20"}).json()
    assert name.lower() not in echoed
    assert pid(server) == before


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "0"])
def test_a_clients_limit_has_to_be_a_number(server: AppServer, value: str) -> None:
    response = server.http.get("/say?text=1", headers={"Flashpool-Timeout": value})
    assert response.status_code == 422
    assert repr(value) in response.json()["detail"]


def test_a_body_that_is_too_large_gets_413(tmp_path: Path) -> None:
    with faulty(tmp_path, FLASHPOOL_MAX_BODY_MB="1") as server:
        for content in (b"x" * 2_000_000, iter([b"x" * 100_000] * 20)):
            response = server.http.post("/size", content=content)
            assert response.status_code == 413
        assert server.http.post("/size", content=b"x" * 900_000).json() == 900_000


def test_memory_is_limited(tmp_path: Path) -> None:
    with faulty(tmp_path, FLASHPOOL_MEMORY_MB="400") as server:
        response = server.http.get("/leak?mib=600")
        assert (response.status_code, response.json()["error_type"]) == (502, "OutOfMemory")
        assert server.http.get("/say?text=1").status_code == 200


def test_requests_wait_for_room_and_are_refused_when_the_queue_is_full(tmp_path: Path) -> None:
    variables = {"FLASHPOOL_APP_CONCURRENCY": "2", "FLASHPOOL_QUEUE_LIMIT": "1"}
    with faulty(tmp_path, **variables) as server:
        with said(server, "sleeps 3"):
            running = [in_background(server, "/sleep?seconds=3") for _ in range(3)]
        time.sleep(0.5)
        refused = server.http.get("/say?text=1")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert [one.result(60).status_code for one in running] == [200, 200, 200]


def test_several_workers_share_the_requests(tmp_path: Path) -> None:
    with faulty(tmp_path, FLASHPOOL_APP_WORKERS="2", FLASHPOOL_SLOTS="2") as server:
        until(lambda: server.log().count(": loaded in ") == 2)
        with said(server, "blocks 2"):
            blocked = in_background(server, "/block?seconds=2")
        assert server.http.get("/say?text=1").status_code == 200
        assert blocked.result(60).status_code == 200


BROKEN = {
    "raises": "raise ValueError('at import')\n",
    "exits": "import sys\nsys.exit(4)\n",
    "crashes": "import os\nos._exit(5)\n",
    "no app": "handler = 1\n",
    "no callable": "app = 1\n",
    "start-up fails": (
        "async def app(scope, receive, send):\n    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no model'})\n"
    ),
}
#: An application without a lifespan.
FINE = """
async def app(scope, receive, send):
    assert scope["type"] == "http" and "state" not in scope
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})
"""


@pytest.mark.parametrize("name", BROKEN)
def test_an_app_that_cannot_be_loaded_gets_503_with_the_reason(tmp_path: Path, name: str) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "handler_broken.py").write_text(BROKEN[name])
    with serving_app(tmp_path, app, ready=False) as server:
        until(lambda: server.http.get("/ping").status_code == 503)
        assert server.http.get("/ping").json()["reason"]
        response = server.http.get("/anything")
        assert (response.status_code, response.json()["error_type"]) == (503, "AppNotLoaded")
        # Loading is retried, and the app is served once it loads.
        (app / "handler_broken.py").write_text(FINE)
        until(lambda: server.http.get("/ping").status_code == 200, 60)
        assert server.http.get("/anything").text == "fine"


def test_an_app_that_hangs_while_it_loads_is_killed(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "handler_slow.py").write_text("import time\ntime.sleep(600)\n")
    with serving_app(tmp_path, app, ready=False, FLASHPOOL_APP_START_TIMEOUT_S="1") as server:
        assert server.http.get("/ping").status_code == 204
        until(lambda: server.http.get("/ping").status_code == 503)
        assert "FLASHPOOL_APP_START_TIMEOUT_S" in server.http.get("/ping").json()["reason"]


def test_a_drain_lets_requests_finish_and_the_app_shut_down(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        with said(server, "sleeps 1.5"):
            running = in_background(server, "/sleep?seconds=1.5")
        server.process.terminate()
        until(lambda: server.http.get("/ping").status_code == 503)
        refused = server.http.get("/say?text=1")
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert running.result(60).json() == "slept"
        assert server.process.wait(40) == 0
        assert "the app shuts down" in server.log()
        assert "SIGTERM: draining for at most 30 s: 1 request to finish" in server.log()
        assert "Stopped; 0 requests cancelled" in server.log()


def test_a_second_signal_ends_running_requests(tmp_path: Path) -> None:
    with faulty(tmp_path) as server:
        with said(server, "sleeps 60"):
            running = in_background(server, "/sleep?seconds=60")
        tree = server.tree()
        server.process.terminate()
        until(lambda: server.http.get("/ping").status_code == 503)
        server.process.terminate()
        assert running.result(60).status_code == 503
        assert server.process.wait(40) == 0
        assert "Stopped; 1 request cancelled" in server.log()
        until(lambda: not alive(tree))


def test_a_slow_reader_slows_its_app_and_uses_no_server_memory(server: AppServer) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(b"GET /stream?pieces=2000&size=100000 HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(20):
            assert sock.recv(10_000)
            assert process.memory_info().rss < before + (40 << 20)
            time.sleep(0.02)


def test_a_missing_resource_is_named(tmp_path: Path) -> None:
    (tmp_path / "handler_a.py").touch()
    (tmp_path / "handler_b.py").touch()
    for flags in ([], ["--resource", "c"]):
        command = [FLASHPOOL, "serve", "app", tmp_path, *flags]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found.returncode == 2
        assert "a, b" in found.stderr
