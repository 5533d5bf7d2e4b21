"""How much Python a call runs through in the server: a count, so no machine is too slow for it."""

from pathlib import Path

from bench import call_rows

#: Below the limit of the benchmark, so that what comes near it is noticed. 140 to 145 were counted
#: on CPython 3.10 to 3.13; then ids of calls, histograms of phases and the look for sources of
#: SDK 2.0 brought ten.
CALLS = 162
#: Where a call certainly passes: a count that lacks one of them has counted something else.
STATIONS = {
    "frontends/http_server/connection.py",
    "frontends/lb/app.py",
    "frontends/service.py",
    "pool/supervisor/supervisor.py",
    "pool/scheduling/scheduler.py",
    "pool/workers/worker_set.py",
    "pool/workers/zygote_set.py",
}


def test_a_call_passes_few_functions_and_files_of_the_server(tmp_path: Path) -> None:
    found = call_rows.count(tmp_path)
    assert found.by_file.keys() >= STATIONS
    assert sum(found.by_file.values()) == found.calls <= CALLS
    assert len(found.by_file) <= call_rows.FILES
