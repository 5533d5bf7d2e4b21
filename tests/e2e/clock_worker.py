"""A process on a machine whose clock is wrong; prints what it does with others' files, as JSON.

Its arguments: the volume, and what to do there.
"""

import json
import sys
import time
from pathlib import Path

from flashpool.envs.resolving.memo import StoredMemo
from flashpool.envs.store.eviction import Evictor, StoreLimits, sweep
from flashpool.envs.store.layout import Store
from flashpool.envs.store.lease_files import LeaseTable, Marks
from flashpool.envs.store.liveness import Liveness
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.spill import Spill
from flashpool.pool.calls import Outcome

KEY = b"key"
DIGEST = "a" * 40
#: Seconds that results, reports and resolved versions are kept.
KEEP_S = 3600.0


def keep(volume: Path) -> object:
    """Write a report, a result and a memo, as a worker of that name does."""
    outbox_of(volume, "pod").keep(JobReport(job_id="job", body=b"{}"))
    spill(volume)
    store = Store(volume / "flashpool")
    store.prepare()
    holders = liveness(store)
    holders.beat()
    StoredMemo(store, KEEP_S, None, holders).put(DIGEST, DIGEST, ())
    return time.time()


def resume(volume: Path) -> object:
    """Resume the report, as the next process of the same worker does."""
    return [report.job_id for report in outbox_of(volume, "pod").waiting(KEEP_S)]


def look_around(volume: Path) -> object:
    """Clean up, as another worker and another pod do."""
    outbox_of(volume, "other").forget_others(2 * KEEP_S)
    spill(volume)
    store = Store(volume / "flashpool")
    holders = liveness(store)
    holders.beat()
    problems = sweep(store, holders, trimmed=True)
    marks = Marks(store, holders)
    limits = StoreLimits(max_age_s=KEEP_S)
    evictor = Evictor(store, holders, marks, LeaseTable(marks, hold_s=0.0), limits)
    memo = StoredMemo(store, KEEP_S, None, holders).get(DIGEST)
    return {
        "clock": time.time(),
        "problems": problems,
        "evicted": evictor.evict_aged(),
        "fresh": memo is not None and memo.fresh,
    }


def spill(volume: Path) -> None:
    result = Outcome(body=b'"result"', format="json")
    Spill(volume / "flashpool" / "results", KEEP_S).spilled("job", result)


def outbox_of(volume: Path, worker: str) -> Outbox:
    return Outbox(volume / "flashpool" / "outbox" / "endpoint" / worker, KEY)


def liveness(store: Store) -> Liveness:
    return Liveness(store.holders, heartbeat_s=0.01, stale_s=60.0, claim_stale_s=15.0)


if __name__ == "__main__":
    does = {"keep": keep, "resume": resume, "look_around": look_around}[sys.argv[2]]
    print(json.dumps(does(Path(sys.argv[1]))))
