"""The server's life: full queues, busy slots, lost clients, stops and kills."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from e2e.server import Server, alive, request, serving, until

BUSY = "def f():\n    while True: pass"
#: Computes until it is stopped.
COMPUTES = "def f(go):\n    import os\n    while not os.path.exists(go): pass"
#: Writes its pid, so that a test knows that it runs, and stays until a file appears, or for
#: a minute.
STAYS = """def f(path, go):
    import os, time
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    end = time.monotonic() + 60
    while not os.path.exists(go) and time.monotonic() < end:
        time.sleep(0.01)
    return "done" """


class Caller:
    """Posts a request from a thread and keeps the answer."""

    def __init__(self, server: Server, body: dict[str, object]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.reply = self._pool.submit(
            httpx.post, f"{server.url}/execute", json=body, timeout=55, trust_env=False
        )

    def __enter__(self) -> "Caller":  # noqa: PYI034 - typing.Self is younger than 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def staying(server: Server, mark: Path, **fields: object) -> Caller:
    """Start a call and wait until it runs."""
    caller = Caller(server, request(STAYS, str(mark), str(mark.with_name("go")), **fields))
    until(mark.exists)
    return caller


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    variables = {"FLASHPOOL_SLOTS": "2", "FLASHPOOL_QUEUE_LIMIT": "1", "FLASHPOOL_GRACE_S": "0.3"}
    with serving(tmp_path, **variables) as server:
        yield server


def test_the_server_has_a_batch_scheduling_policy_and_calls_do_not(server: Server) -> None:
    asks = "def f():\n    import os\n    return os.sched_getscheduler(0)"
    assert server.execute(asks, serialization_format="json")["json_result"] == os.SCHED_OTHER
    policy = os.sched_getscheduler(server.process.pid)
    assert policy == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
    assert {os.sched_getscheduler(one.pid) for one in server.tree()} == {os.SCHED_OTHER}


def test_probes_and_stats_answer_while_every_slot_computes(server: Server, tmp_path: Path) -> None:
    """`make bench` measures how fast; this test checks that answers do not wait for calls."""
    go = tmp_path / "go"
    busy = [Caller(server, request(COMPUTES, str(go))) for _ in range(3)]
    until(lambda: server.stats()["slots"]["busy"] == 2)
    for _ in range(50):
        assert server.http.get("/ping").status_code == 200
    until(lambda: server.stats()["queue"]["depth"] == 1)
    assert not any(caller.reply.done() for caller in busy)
    go.touch()
    for caller in busy:
        with caller:
            assert caller.reply.result().json()["success"]


def test_a_full_queue_refuses_at_once(server: Server, tmp_path: Path) -> None:
    with (
        staying(server, tmp_path / "1"),
        staying(server, tmp_path / "2"),
        Caller(server, request("def f(): return 1")) as waiting,
    ):
        until(lambda: server.stats()["queue"]["depth"] == 1)
        reply = server.http.post("/execute", json=request("def f(): return 1"))
        assert not waiting.reply.done(), "it was not kept waiting itself"
        assert (reply.status_code, reply.json()["error_type"]) == (503, "Overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        (tmp_path / "go").touch()
    assert waiting.reply.result().json()["json_result"] == 1


def test_a_client_that_disconnects_cancels_its_call(server: Server, tmp_path: Path) -> None:
    import json

    mark = tmp_path / "begun"
    body = json.dumps(request(STAYS, str(mark), str(tmp_path / "go"))).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /execute HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(mark.exists)
        worker = psutil.Process(int(mark.read_text()))
    until(lambda: not alive([worker]))
    until(lambda: server.stats()["slots"]["busy"] == 0)
    assert server.stats()["outcomes"].get("Cancelled") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_running_calls_finish(
    server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    with staying(server, tmp_path / "begun") as caller:
        tree = server.tree()
        server.process.send_signal(signum)
        until(lambda: server.http.get("/ping").status_code == 503)
        refused = server.http.post("/execute", json=request("def f(): return 1"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        (tmp_path / "go").touch()
        assert caller.reply.result().json()["json_result"] == "done"
        assert server.process.wait(30) == 0
    assert not alive(tree)


def test_ctrl_c_in_a_terminal_drains_too(server: Server, tmp_path: Path) -> None:
    with staying(server, tmp_path / "begun") as caller:
        os.killpg(server.process.pid, signal.SIGINT)
        until(lambda: server.http.get("/ping").status_code == 503)
        (tmp_path / "go").touch()
        assert caller.reply.result().json()["json_result"] == "done"
        assert server.process.wait(30) == 0


def test_a_server_started_with_nohup_survives_sighup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with serving(tmp_path) as server:
            server.process.send_signal(signal.SIGHUP)
            assert server.execute("def f(): return 1")["json_result"] == 1
            assert server.http.get("/ping").status_code == 200
            assert server.stop(25) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_calls_that_outlast_the_drain_are_ended(tmp_path: Path) -> None:
    limits = {"FLASHPOOL_DRAIN_S": "0.5", "FLASHPOOL_GRACE_S": "0.2"}
    with serving(tmp_path, **limits) as server, staying(server, tmp_path / "b") as caller:
        assert server.stop(25) == 0, "before the call ends by itself"
        reply = caller.reply.result().json()
        assert reply["error_type"] == "Cancelled"
        assert (
            "the server stopped before the call had finished (FLASHPOOL_DRAIN_S)" in reply["error"]
        )
        assert "draining for at most 0.5 s: 1 call to finish" in server.log()
        assert "Stopped; 1 call cancelled" in server.log()


def test_a_second_signal_ends_at_once(server: Server, tmp_path: Path) -> None:
    with staying(server, tmp_path / "begun") as caller:
        server.process.send_signal(signal.SIGINT)
        until(lambda: server.http.get("/ping").status_code == 503)
        assert server.stop(25) == 0, "before the call ends by itself"
        assert caller.reply.result().json()["error_type"] == "Cancelled"


def test_a_killed_server_leaves_nothing(server: Server, tmp_path: Path) -> None:
    caller = staying(server, tmp_path / "begun")
    tree = server.tree()
    assert len(tree) >= 3
    server.process.kill()
    server.process.wait()
    until(lambda: not alive(tree))
    with caller:
        assert isinstance(caller.reply.exception(), httpx.TransportError)


def test_a_killed_zygote_fails_its_calls_and_no_more(server: Server, tmp_path: Path) -> None:
    with staying(server, tmp_path / "begun") as caller:
        for pid in server.zygotes():
            os.kill(pid, signal.SIGKILL)
        answer = caller.reply.result().json()
        assert (answer["success"], answer["error_type"]) == (False, "WorkerCrashed")
        assert server.execute("def f(): return 42")["json_result"] == 42


def test_slow_and_silent_clients_do_not_affect_others(tmp_path: Path) -> None:
    limits = {"FLASHPOOL_HEADER_TIMEOUT_S": "1", "FLASHPOOL_RECEIVE_TIMEOUT_S": "1"}
    with serving(tmp_path, **limits) as server:
        fds = psutil.Process(server.process.pid).num_fds()
        address = ("127.0.0.1", server.port)
        clients = [socket.create_connection(address) for _ in range(60)]
        for client in clients[:20]:
            client.sendall(b"POST /exe")
        for client in clients[20:40]:
            client.sendall(b"POST /execute HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        assert server.execute("def f(): return 42")["json_result"] == 42
        for client in clients:
            client.settimeout(30)
            while client.recv(4096):
                pass
            client.close()
        until(lambda: psutil.Process(server.process.pid).num_fds() <= fds + 8)


def test_secrets_stay_with_the_server(tmp_path: Path) -> None:
    secrets = {
        "FLASHPOOL_TOKEN": "s3cret",
        "RUNPOD_API_KEY": "k3y",
        "FLASHPOOL_PASS_ENV": "*",
        "MINE": "1",
    }
    code = """def f(server):
    import os
    def read(path):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            return b""
    if os.getuid() == 0:
        os.setresuid(12345, 12345, 12345)
    environments = [read(f"/proc/{pid}/environ") for pid in os.listdir("/proc") if pid.isdigit()]
    return [dict(os.environ), any(b"s3cret" in e for e in environments)]"""
    with serving(tmp_path, **secrets) as server:
        server.http.headers["Authorization"] = "Bearer s3cret"
        environ, readable = server.execute(code, server.process.pid)["json_result"]
        assert not readable, "not as another user, nor as the same one"
        assert environ["MINE"] == "1"
        assert not {"FLASHPOOL_TOKEN", "RUNPOD_API_KEY"} & set(environ)
        status = Path(f"/proc/{server.process.pid}").stat()
        # A process that is not dumpable belongs to root under /proc, whoever runs it.
        assert status.st_uid == 0
        del server.http.headers["Authorization"]
        assert server.http.post("/execute", json=request(code, 0)).status_code == 401


def test_many_calls_at_once_leak_nothing(server: Server) -> None:
    body = request("def f(a): return a", 1)
    failures: list[object] = []

    def client() -> None:
        with httpx.Client(base_url=server.url, timeout=55, trust_env=False) as http:
            for _ in range(25):
                reply = http.post("/execute", json=body)
                # The queue holds one call, so most are refused with a retry time.
                if reply.status_code not in (200, 503):
                    failures.append(reply.text)

    for _ in range(2):
        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: server.stats()["slots"]["busy"] == 0)
    assert failures == []
    assert server.execute("def f(): return 42")["json_result"] == 42


#: The function returns at once, and its process stays until the first file exists.
LEAVES_A_THREAD = """
def f(go, done):
    import os, threading, time
    def stay():
        while not os.path.exists(go):
            time.sleep(0.01)
        open(done, "w").close()
    threading.Thread(target=stay).start()
    return "answered"
"""


def test_a_drain_waits_for_calls_that_have_answered_and_still_exit(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    with serving(tmp_path, FLASHPOOL_DRAIN_S="30", FLASHPOOL_EXIT_S="40") as server:
        answer = server.execute(LEAVES_A_THREAD, str(go), str(done))
        assert answer["json_result"] == "answered"
        assert "1 thread still runs" in answer["warnings"][0]
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "1 call to finish" in server.log())
        assert server.http.get("/ping").status_code == 503
        go.touch()
        assert server.process.wait(40) == 0
        assert done.exists()
        assert "0 calls cancelled" in server.log()


def test_the_log_has_a_line_for_each_call_that_failed(tmp_path: Path) -> None:
    variables = {"FLASHPOOL_OFFLINE": "yes", "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local")}
    with serving(tmp_path, **variables) as server:
        crash = server.execute(
            "def crash():\n    import os\n    os._exit(7)", function_name="crash"
        )
        late = server.execute(BUSY, timeout_s=0.2)
        raised = server.execute(
            "def raises():\n    raise ValueError('secret')", function_name="raises"
        )
        unbuilt = server.execute(
            "def lone(): pass", function_name="lone", dependencies=["no-such-package-at-all"]
        )
        until(lambda: server.log().count("Call of ") >= 4)
        lines = server.log().splitlines()
        told = [line.partition("Call of ")[2] for line in lines if "Call of " in line]
        assert told[0].startswith(f"crash, pid {crash['receipt']['pid']}: WorkerCrashed: ")
        assert "7" in told[0]
        assert told[1].startswith(f"f, pid {late['receipt']['pid']}: Timeout: ")
        assert unbuilt["error_type"] == "EnvironmentError"
        assert told[2].startswith(f"raises, pid {raised['receipt']['pid']}: ValueError: raised by")
        assert told[3].startswith("lone: EnvironmentError: ")
        assert len(told) == 4
        assert "secret" not in server.log(), "words of exceptions are for their callers only"


def test_a_misspelt_field_is_warned_of_in_the_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        answer = server.execute("def f(): return 1", timout_s=5, unheard_of=1)
        assert answer["warnings"] == [
            "The unknown field 'timout_s' is ignored; did you mean timeout_s?"
        ]
        assert "warnings" not in server.execute("def f(): return 1", unheard_of=1)


def test_the_admin_port_says_what_it_serves(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for path in ("/ping", "/execute"):
            missing = httpx.get(f"{server.admin}{path}", trust_env=False)
            assert missing.status_code == 404
            assert "GET /stats" in missing.json()["detail"]
