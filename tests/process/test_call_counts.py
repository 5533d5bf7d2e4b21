"""How many Python functions of the server a call runs: a count, so slow machines do not matter."""

from pathlib import Path

from bench import call_rows

#: Below the benchmark's limit, so that growth is noticed early. CPython 3.10 to 3.13 ran 140 to
#: 145 functions; then ids of calls, histograms of phases and the check for sources of SDK 2.0 added
#: ten.
CALLS = 162
#: Functions that every call runs: a count without one of them has counted something else.
STATIONS = {
    "frontends/http_server/connection.py",
    "frontends/lb/app.py",
    "frontends/service.py",
    "pool/supervisor/supervisor.py",
    "pool/scheduling/scheduler.py",
    "pool/workers/worker_set.py",
    "pool/workers/zygote_set.py",
}


def test_a_call_runs_few_functions_of_the_server(tmp_path: Path) -> None:
    found = call_rows.count(tmp_path)
    assert found.by_file.keys() >= STATIONS
    assert sum(found.by_file.values()) == found.calls <= CALLS
    assert len(found.by_file) <= call_rows.FILES
