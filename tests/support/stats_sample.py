"""A stats document of a busy server with GPUs, made of the product's own parts."""

from dataclasses import replace
from typing import Final

from flashpool.frontends.admin import JobsStats
from flashpool.frontends.admin.stats_document import VERSION, ServerStats, StatsDocument
from flashpool.frontends.admin.storage import StorageStats
from flashpool.pool.calls import Outcome, Provision, Receipt
from flashpool.pool.histograms import Histogram
from flashpool.pool.recorder import Recorder
from flashpool.pool.stats import (
    AppStats,
    GpusStats,
    GpuStats,
    IsolatedStats,
    QueueStats,
    RouteStats,
    SlotStats,
    StoreStats,
    WaitStats,
)

GPU: Final = "GPU-11111111-2222-3333-4444-555555555555"


def ended(recorder: Recorder, number: int, error_type: str | None = None) -> None:
    """Record the end of a call with its own label and id."""
    receipt = Receipt(
        queue_s=0.001,
        start_s=0.002,
        run_s=0.2,
        total_s=0.203,
        attempts=1,
        provision=Provision(environment="d" * 32, origin="memo", resolve_s=0.0001),
    )
    recorder.ended(
        number,
        f"function_{number}",
        Outcome(error_type=error_type, error="boom", output=b"secret words", receipt=receipt),
    )


def app() -> AppStats:
    """A deployed app that has served a request."""
    seconds = Histogram()
    seconds.add([0.2])
    route = RouteStats(route="/items/{item_id}", requests={"2xx": 1}, latency=seconds.stats())
    return AppStats(
        app="shop",
        state="served",
        failure=None,
        waiting=0,
        workers=[],
        deaths=0,
        last_death=None,
        retiring=False,
        isolated=IsolatedStats(waiting=0, running=0, served=0, load_s=None, slow_because=None),
        note=None,
        neighbours=None,
        routes=[route],
    )


def document(recorder: Recorder) -> StatsDocument:
    """A stats document of the recorder, with a GPU in quarantine."""
    gpu = GpuStats(
        uuid=GPU,
        index=0,
        name="NVIDIA H100",
        parent=None,
        state="quarantined",
        calls=0,
        memory_bytes=80_000_000_000,
        used_bytes=42_000_000_000,
        level_bytes=500_000_000,
        evidence="memory did not come back",
        quarantined_s=12.0,
        utilization_percent=93,
        temperature_c=71,
        ecc_corrected=6,
        ecc_uncorrected=1,
        xid_errors=2,
        last_xid=79,
    )
    return StatsDocument(
        schema_version=VERSION,
        server=ServerStats(
            mode="live", version="1", started_at=1.0, uptime_s=9.0, settings_digest="abc"
        ),
        storage=[
            StorageStats(
                place="local", path="/", size_bytes=10, free_bytes=5, age_s=0.1, problem=None
            )
        ],
        jobs=JobsStats(taken=9, running=2, done=4, failed=3, reports_waiting=5),
        ready=True,
        unfit=None,
        draining=False,
        slots=SlotStats(total=4, busy=3),
        queue=QueueStats(
            depth=7,
            limit=100,
            oldest_age_s=1.5,
            refused=3,
            by_phase={
                "slot": WaitStats(depth=7, oldest_age_s=1.5, refused=3),
                "environment": WaitStats(depth=0, oldest_age_s=None, refused=0),
            },
        ),
        shortages=[],
        gpus=GpusStats(total=1, usable=0, waiting=2, driver="1", reason=None, devices=[gpu]),
        zygotes=[],
        running=[],
        instances=[],
        apps=[app()],
        stuck=[],
        calls=recorder.calls,
        outcomes=dict(recorder.outcomes),
        latency=recorder.latency(),
        last_hour=recorder.last_hour(),
        environment_origins=dict(recorder.origins),
        recent_failures=recorder.failures(),
        exits=recorder.exits(0),
        supervisor=replace(recorder.supervisor(), callback_errors=0),
        stores=[
            StoreStats(
                root="/volume",
                heartbeat_age_s=1.0,
                failures=0,
                problem=None,
                environments=3,
                bytes=1_500_000,
                builds=4,
                failed_builds=2,
                evictions=1,
            )
        ],
    )
