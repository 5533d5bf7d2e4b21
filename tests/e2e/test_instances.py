"""Class instances over /execute: they keep their state, share nothing, and can be closed."""

import base64
import concurrent.futures
import os
import pickle
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2e.server import Server, report, serving, until

pytestmark = pytest.mark.shared_pool

COUNTER = """
class Counter:
    def __init__(self, start=0):
        print("made from", start)
        self.n = start
    def inc(self, by=1):
        self.n += by
        return self.n
    def pid(self):
        import os
        return os.getpid()
    def slow(self, seconds):
        import time
        time.sleep(seconds)
        return self.inc()
    def say(self, text):
        import os
        print(text)
        os.system("echo native " + text)
    def fail(self):
        raise ValueError("not today")
    def die(self, number=11):
        import os
        os.kill(os.getpid(), number)
    def spin(self):
        while True: pass
    def leave(self):
        raise SystemExit(3)
    def items(self, n):
        yield from range(n)
    def __call__(self, x):
        return x * self.n
    async def nap(self, seconds, text=""):
        import asyncio
        print("begin", text)
        await asyncio.sleep(seconds)
        print("end", text)
        return self.n
    async def meet(self, number, text):
        import asyncio
        print("begin", text)
        self.here = getattr(self, "here", 0) + 1
        while self.here < number:
            await asyncio.sleep(0.01)
        print("end", text)
        return self.n
    async def stubborn(self, seconds):
        import time
        time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, FLASHPOOL_GRACE_S="2", FLASHPOOL_INSTANCES="4") as server:
        yield server


def call(server: Server, instance: str, method: str, *args: Any, **fields: Any) -> dict[str, Any]:
    request = {
        "execution_type": "class",
        "class_name": "Counter",
        "class_code": COUNTER,
        "constructor_args": [10],
        "method_name": method,
        "args": list(args),
        "instance_id": instance,
        "create_new_instance": False,
        "serialization_format": "json",
        **fields,
    }
    return server.http.post("/execute", json=request).json()  # type: ignore[no-any-return]


def value(answer: dict[str, Any]) -> Any:
    assert answer["success"], report(answer)
    return answer["json_result"]


def test_an_instance_keeps_its_state_over_requests(server: Server) -> None:
    first = call(server, "keeps", "inc")
    assert value(first) == 11
    second = call(server, "keeps", "inc", 5)
    assert value(second) == 16
    assert second["instance_id"] == "keeps"
    facts = second["instance_info"]
    assert facts["class_name"] == "Counter"
    assert (facts["method_calls"], facts["generation"], facts["rebuilt"]) == (2, 1, False)
    assert first["receipt"]["pid"] == second["receipt"]["pid"]
    assert value(call(server, "keeps", "__call__", 3)) == 48
    assert value(call(server, "keeps", "items", 3)) == [0, 1, 2]


def test_pickled_arguments_of_the_client_are_accepted(server: Server) -> None:
    dumped = base64.b64encode(pickle.dumps(20)).decode()
    answer = call(
        server, "pickled", "inc", serialization_format="cloudpickle", constructor_args=[dumped]
    )
    assert pickle.loads(base64.b64decode(answer["result"])) == 21


def test_without_an_id_an_instance_gets_one(server: Server) -> None:
    first = call(server, "", "inc", instance_id=None, create_new_instance=True)
    assert value(first) == 11
    assert first["instance_id"].startswith("Counter_")
    assert value(call(server, first["instance_id"], "inc")) == 12


def test_each_call_has_its_own_output_and_error(server: Server) -> None:
    value(call(server, "output", "say", "one"))
    answer = call(server, "output", "say", "two")
    assert answer["stdout"] == "two\nnative two\n"
    failed = call(server, "output", "fail")
    assert (failed["error_type"], failed["success"]) == ("ValueError", False)
    assert "not today" in failed["error"]
    left = call(server, "output", "leave")
    assert left["error_type"] == "SystemExit"
    assert value(call(server, "output", "inc")) == 11, "the instance outlives what a call raises"
    # Files that were created for its child are removed with the instance.
    assert value(call(server, "output", "inc", create_new_instance=True)) == 11


def test_a_constructor_that_raises_fails_the_call(server: Server) -> None:
    answer = call(server, "broken", "inc", constructor_args=[{"a": 1}, 2, 3])
    assert answer["error_type"] == "TypeError", report(answer)
    assert value(call(server, "broken", "inc")) == 11


def test_a_missing_method_is_an_error(server: Server) -> None:
    answer = call(server, "methods", "missing")
    assert answer["error_type"] == "InvalidRequest", report(answer)
    assert "inc" in answer["error"]
    assert call(server, "methods", "__init__")["error_type"] == "InvalidRequest"


def test_a_call_in_a_process_of_its_own_leaves_the_instance_alone(server: Server) -> None:
    value(call(server, "own", "inc"))
    assert value(call(server, "own", "inc", isolation="call")) == 11
    assert value(call(server, "own", "inc")) == 12


def test_a_crash_fails_its_call_and_the_next_one_creates_a_new_instance(server: Server) -> None:
    assert value(call(server, "crash", "inc")) == 11
    dead = call(server, "crash", "die")
    assert dead["error_type"] == "WorkerCrashed"
    assert "SIGSEGV" in dead["error"]
    assert dead["instance_id"] == "crash"
    assert "SIGSEGV" in dead["instance_info"]["ended_because"]
    answer = call(server, "crash", "inc")
    assert value(answer) == 11
    facts = answer["instance_info"]
    assert (facts["generation"], facts["rebuilt"]) == (2, True)
    assert "SIGSEGV" in facts["rebuilt_because"]


def test_a_time_limit_ends_the_call_and_the_instance(server: Server) -> None:
    value(call(server, "limit", "inc"))
    answer = call(server, "limit", "spin", timeout_s=0.5)
    assert answer["error_type"] == "Timeout", report(answer)
    assert value(call(server, "limit", "inc")) == 11


def test_a_constructor_that_takes_too_long_times_out(server: Server) -> None:
    code = COUNTER.replace('print("made from", start)', "__import__('time').sleep(60)")
    answer = call(server, "slow-made", "inc", class_code=code, timeout_s=0.5)
    assert answer["error_type"] == "Timeout", report(answer)
    assert answer["details"]["phase"] == "start"
    until(lambda: "slow-made" not in names(server))


def names(server: Server) -> list[str]:
    return [one["instance"] for one in server.stats()["instances"]]


def test_other_code_or_arguments_under_one_name_conflict(server: Server) -> None:
    value(call(server, "name", "inc"))
    other = call(server, "name", "inc", class_code=COUNTER + "\n# other")
    assert other["error_type"] == "InstanceConflict"
    assert "create_new_instance" in other["error"]
    kept = call(server, "name", "inc", constructor_args=[99])
    assert value(kept) == 12, "the instance that is there counts, not the arguments"
    assert kept["instance_info"]["same_arguments"] is False
    anew = call(server, "name", "inc", class_code=COUNTER + "\n# other", create_new_instance=True)
    assert value(anew) == 11
    assert anew["instance_info"]["generation"] == 2


@pytest.mark.parametrize(
    "name", ["Ünï-码 \U0001f600", "a/b?c=d&e", 'quo"te', "back\\slash", "x" * 256, "{}%s%d"]
)
def test_a_name_may_be_odd(server: Server, name: str) -> None:
    first = call(server, name, "inc")
    assert (value(first), first["instance_id"]) == (11, name)
    assert value(call(server, name, "inc")) == 12
    assert name in names(server)


@pytest.mark.parametrize("name", ["", "x" * 257, "line\nfeed", "nul\0", "\u202e"])
def test_a_name_that_cannot_be_shown_is_refused(server: Server, name: str) -> None:
    assert call(server, name, "inc")["error_type"] == "InvalidRequest"


def test_two_classes_under_one_name_conflict(server: Server) -> None:
    value(call(server, "two", "inc"))
    other = "class Other:\n    def inc(self):\n        return 'other'\n"
    fields = {"class_name": "Other", "class_code": other, "constructor_args": []}
    assert call(server, "two", "inc", **fields)["error_type"] == "InstanceConflict"
    assert value(call(server, "two", "inc", create_new_instance=True, **fields)) == "other"
    assert call(server, "two", "inc")["error_type"] == "InstanceConflict"


def test_an_instance_keeps_the_variables_it_was_created_with(server: Server) -> None:
    code = COUNTER + "    def var(self):\n        import os\n        return os.environ.get('VAR')\n"
    made = call(server, "variables", "var", class_code=code, env={"VAR": "first"})
    assert value(made) == "first"
    later = call(server, "variables", "var", class_code=code, env={"VAR": "second"})
    assert value(later) == "first"
    assert later["instance_info"]["same_arguments"] is False


def test_a_call_can_require_an_existing_instance(server: Server) -> None:
    answer = call(server, "must", "inc", instance_must_exist=True)
    assert answer["error_type"] == "InstanceLost", report(answer)
    receipt = answer["receipt"]
    assert receipt["environment_origin"] is receipt["environment_hit"] is None, "not its fault"
    assert receipt["attempts"] == 0
    value(call(server, "must", "inc"))
    assert value(call(server, "must", "inc", instance_must_exist=True)) == 12
    call(server, "must", "die")
    answer = call(server, "must", "inc", instance_must_exist=True)
    assert answer["error_type"] == "InstanceLost"
    assert "SIGSEGV" in answer["error"]


def test_calls_at_once_make_one_instance_and_run_one_after_another(server: Server) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: call(server, "one", "inc"), range(8)))
    assert sorted(map(value, answers)) == list(range(11, 19))
    assert len({answer["receipt"]["pid"] for answer in answers}) == 1


def test_async_methods_overlap_and_keep_their_outputs_apart(server: Server) -> None:
    value(call(server, "async", "inc"))
    with concurrent.futures.ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda i: call(server, "async", "meet", 5, str(i)), range(5)))
    for i, answer in enumerate(answers):
        assert value(answer) == 11
        assert answer["stdout"] == f"begin {i}\nend {i}\n"


def test_the_time_limit_of_one_async_call_leaves_the_others_alone(server: Server) -> None:
    value(call(server, "async-limit", "inc"))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        long = threads.submit(call, server, "async-limit", "nap", 1.5)
        late = threads.submit(call, server, "async-limit", "nap", 60, timeout_s=0.3)
        assert late.result()["error_type"] == "Timeout", report(late.result())
        assert value(long.result()) == 11
    assert value(call(server, "async-limit", "inc")) == 12, "it is the same instance"


def test_overlapping_calls_fail_when_their_instance_is_ended(server: Server) -> None:
    value(call(server, "siblings", "inc"))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        long = threads.submit(call, server, "siblings", "nap", 60)
        until(lambda: any(one["running"] for one in server.stats()["instances"]))
        late = threads.submit(call, server, "siblings", "stubborn", 60, timeout_s=0.3)
        assert late.result()["error_type"] == "Timeout", report(late.result())
        assert long.result()["error_type"] == "ResidentLost", report(long.result())


def test_a_client_that_disconnects_ends_its_call(server: Server) -> None:
    pid = value(call(server, "leaver", "pid"))
    request = {
        "execution_type": "class",
        "class_name": "Counter",
        "class_code": COUNTER,
        "constructor_args": [10],
        "method_name": "spin",
        "instance_id": "leaver",
        "create_new_instance": False,
        "serialization_format": "json",
    }
    with (
        httpx.Client(base_url=server.url, timeout=2, trust_env=False) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.post("/execute", json=request)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_an_idle_instance_killed_from_outside_is_replaced(server: Server) -> None:
    pid = value(call(server, "idle", "pid"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: "idle" not in names(server))
    answer = call(server, "idle", "inc")
    assert value(answer) == 11
    assert answer["instance_info"]["generation"] == 2


def test_a_crash_loop_in_a_constructor_is_cut_off(server: Server) -> None:
    code = COUNTER.replace('print("made from", start)', "__import__('os')._exit(9)")
    answers = [call(server, "loop", "inc", class_code=code) for _ in range(5)]
    assert all(answer["error_type"] == "WorkerCrashed" for answer in answers)
    assert "exit code 9" in answers[0]["error"]
    assert "died 3 times" in answers[-1]["error"], report(answers[-1])
    assert "exit code 9" in answers[-1]["error"]


@pytest.mark.slow
def test_many_calls_work_with_more_instances_than_the_limit(server: Server) -> None:
    """The least recently used are evicted; each lost state is reported in an answer."""
    totals = {f"room-{i}": (10, 0) for i in range(8)}

    def step(i: int) -> None:
        name = f"room-{i % 8}"
        answer = call(server, name, "inc")
        got, generation = value(answer), answer["instance_info"]["generation"]
        before, was = totals[name]
        assert got == (before + 1 if generation == was else 11)
        totals[name] = (got, generation)

    for i in range(120):
        step(i)
        assert len(names(server)) <= 4


def test_close_is_called_when_an_instance_is_evicted(tmp_path: Any) -> None:
    code = (
        COUNTER
        + f"""
    def close(self):
        open({str(tmp_path / "closed")!r}, "a").write(f"{{self.n}} ")
"""
    )
    with serving(tmp_path, FLASHPOOL_INSTANCE_IDLE_S="0.5", FLASHPOOL_DRAIN_S="5") as server:
        value(call(server, "a", "inc", class_code=code))
        until(lambda: (tmp_path / "closed").exists())
        until(lambda: not names(server))
        value(call(server, "b", "inc", 5, class_code=code))
        assert server.stop() == 0
    assert (tmp_path / "closed").read_text() == "11 15 "
