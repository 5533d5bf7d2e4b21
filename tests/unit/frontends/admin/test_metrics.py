import json
from dataclasses import replace

import msgspec
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from flashpool.frontends.admin.metrics import render
from flashpool.frontends.admin.stats_document import StatsDocument, schema
from flashpool.pool.recorder import Recorder
from support.stats_sample import GPU, document, ended

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def recorder() -> Recorder:
    one = Recorder()
    for number in range(20):
        ended(one, number)
    for number, name in enumerate(("WorkerCrashed", "Timeout", "Timeout", "Made\n{up}")):
        ended(one, 20 + number, name)
    return one


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_metrics_agree_with_the_stats_document(recorder: Recorder) -> None:
    stats = document(recorder)
    found = samples(render(stats, "")[0].decode())
    counts = {
        dict(labels)["outcome"]: value
        for (name, labels), value in found.items()
        if name == "flashpool_calls_total"
    }
    assert counts == stats.outcomes == {"ok": 20, "WorkerCrashed": 1, "Timeout": 2, "other": 1}
    assert sum(counts.values()) == stats.calls == 24
    run = ("phase", "run")
    assert found["flashpool_call_phase_seconds_count", (run,)] == 24
    assert found["flashpool_call_phase_seconds_bucket", (("le", "+Inf"), run)] == 24
    assert found["flashpool_call_phase_seconds_bucket", (("le", "0.1"), run)] == 0
    assert found["flashpool_call_phase_seconds_sum", (run,)] == pytest.approx(24 * 0.2)
    assert found["flashpool_gpu_quarantined", (("gpu", GPU),)] == 1
    slot, environment = (("phase", "slot"),), (("phase", "environment"),)
    assert found["flashpool_calls_waiting", slot] == 7
    assert found["flashpool_calls_waiting_oldest_age_seconds", slot] == 1.5
    assert found["flashpool_calls_waiting_oldest_age_seconds", environment] == 0
    assert found["flashpool_calls_refused_total", slot] == 3


def test_mig_devices_share_the_health_metrics_of_their_gpu(
    recorder: Recorder,
) -> None:
    stats = document(recorder)
    (gpu,) = stats.gpus.devices
    parts = [replace(gpu, uuid=f"MIG-{number}", parent=GPU) for number in range(2)]
    silent = replace(
        gpu,
        uuid="GPU-silent",
        utilization_percent=None,
        temperature_c=None,
        ecc_corrected=None,
        ecc_uncorrected=None,
        xid_errors=0,
    )
    stats = replace(stats, gpus=replace(stats.gpus, devices=[*parts, silent]))
    found = samples(render(stats, "")[0].decode())
    health = ("utilization", "temperature", "ecc", "xid")
    values = {
        (name.removeprefix("flashpool_gpu_"), *dict(labels).values()): value
        for (name, labels), value in found.items()
        if name.startswith(tuple(f"flashpool_gpu_{word}" for word in health))
    }
    assert values == {
        ("utilization_ratio", GPU): 0.93,
        ("temperature_celsius", GPU): 71,
        ("ecc_errors_total", GPU, "corrected"): 6,
        ("ecc_errors_total", GPU, "uncorrected"): 1,
        ("xid_errors_total", GPU): 2,
        ("xid_errors_total", "GPU-silent"): 0,
    }


def test_environments_are_counted_by_store(recorder: Recorder) -> None:
    found = samples(render(document(recorder), "")[0].decode())
    store = (("store", "/volume"),)
    values = {
        "flashpool_environments": 3,
        "flashpool_environments_bytes": 1_500_000,
        "flashpool_environment_builds_total": 4,
        "flashpool_environment_builds_failed_total": 2,
        "flashpool_environment_evictions_total": 1,
    }
    assert {name: found[name, store] for name in values} == values


def test_jobs_are_counted_where_there_is_a_queue(recorder: Recorder) -> None:
    stats = document(recorder)
    found = samples(render(stats, "")[0].decode())
    assert found["flashpool_jobs_taken_total", ()] == 9
    assert found["flashpool_jobs_running", ()] == 2
    assert found["flashpool_jobs_total", (("result", "done"),)] == 4
    assert found["flashpool_jobs_total", (("result", "failed"),)] == 3
    assert found["flashpool_job_reports_waiting", ()] == 5
    without = render(replace(stats, jobs=None), "")[0].decode()
    assert "flashpool_job" not in without


def test_both_formats_have_the_same_samples(recorder: Recorder) -> None:
    stats = document(recorder)
    text, kind = render(stats, OPEN_METRICS)
    assert kind.startswith("application/openmetrics-text")
    # The formats name a family differently; the samples are the same.
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in open_metrics_families(text.decode())
        for sample in family.samples
    }
    plain, plain_kind = render(stats, "text/plain")
    assert plain_kind.startswith("text/plain")
    assert samples(plain.decode()) == found


def test_names_chosen_by_users_create_no_series(recorder: Recorder) -> None:
    before = samples(render(document(recorder), "")[0].decode())
    for number in range(5000):
        ended(recorder, 100 + number)
        ended(recorder, 10_000 + number, f"Error{number}")
    text = render(document(recorder), "")[0].decode()
    assert set(samples(text)) == set(before)
    assert "function_" not in text


def test_the_stats_document_matches_its_schema(recorder: Recorder) -> None:
    stats = document(recorder)
    data = msgspec.json.encode(stats)
    assert msgspec.json.decode(data, type=StatsDocument) == stats
    found = schema()
    json.dumps(found)
    properties = found["$defs"]["StatsDocument"]["properties"]
    assert set(json.loads(data)) == set(properties)
    assert {"schema_version", "server", "recent_failures"} <= set(properties)
