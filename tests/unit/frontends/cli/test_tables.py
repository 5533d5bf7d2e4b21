"""How ``flashpool stats`` and ``top`` show a stats document."""

import json
from typing import Any

import msgspec

from flashpool.frontends.cli.tables import summary
from flashpool.pool.recorder import Recorder
from support.stats_sample import document


def found() -> dict[str, Any]:
    return dict(json.loads(msgspec.json.encode(document(Recorder()))))


def test_environments_and_jobs_have_a_line_each() -> None:
    rows = dict(summary(found()))
    assert rows["environments"] == "3 in /volume; built here 4, failed 2, evicted 1"
    assert rows["jobs"] == "2 running, 9 taken, 4 done, 3 failed; reports waiting: 5"


def test_without_a_queue_and_stores_these_lines_are_absent() -> None:
    rows = dict(summary(found() | {"jobs": None, "stores": []}))
    assert not {"environments", "jobs"} & set(rows)
    # The document of a store that was just opened, from a server of another version.
    rows = dict(summary(found() | {"stores": [{"root": "/v"}]}))
    assert rows["environments"].startswith("not counted yet in /v")
