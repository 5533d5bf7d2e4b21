"""How `make bench-against` evaluates measurements: intervals, verdicts, costs."""

import math
import os
import random
import statistics
import subprocess
import sys

import pytest
from bench import against_report, against_rows, medians, process_costs
from bench.against_report import Share
from bench.process_costs import Cost

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (20, 6, 15), (25, 8, 18), (30, 10, 21)],
)
def test_the_interval_has_the_ranks_of_the_binomial_distribution(count, low, high):
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    found = medians.median(values)
    assert (found.value, found.low, found.high) == (statistics.median(values), low, high)
    assert found.coverage >= 0.95


def test_an_interval_one_rank_narrower_would_cover_too_little():
    for count in range(6, 60):
        found = medians.median(range(count))
        rank = int(found.low) + 2
        below = sum(math.comb(count, heads) for heads in range(rank)) / 2**count
        assert found.coverage >= 0.95
        assert 1 - 2 * below < 0.95 or rank > count // 2


@pytest.mark.parametrize(("count", "coverage"), [(1, 0.0), (2, 0.5), (5, 0.9375)])
def test_with_too_few_values_the_interval_spans_all_with_its_coverage(count, coverage):
    found = medians.median(range(count))
    assert (found.low, found.high, found.coverage) == (0, count - 1, coverage)


def test_the_interval_covers_the_median_of_a_skewed_distribution_as_stated():
    source = random.Random(1)
    enclosed = 0
    for _ in range(2000):
        found = medians.median([source.expovariate(1.0) for _ in range(20)])
        enclosed += found.low <= math.log(2) <= found.high
    assert enclosed / 2000 == pytest.approx(found.coverage, abs=0.02)


def more(faults: float, cpu_us: float) -> Share:
    return Share(
        row="row",
        part="all",
        old_faults=100,
        new_faults=100 + faults,
        old_cpu_us=1000,
        new_cpu_us=1000 + cpu_us,
    )


@pytest.mark.parametrize(
    ("high", "share", "verdict"),
    [
        (0.98, more(50, 500), "yes"),
        (0.979, more(3, 20), "yes, by the profile"),
        (0.979, more(-40, -90), "yes, by the profile"),
        (0.979, more(3.1, 0), "no"),
        (0.979, more(0, 20.1), "no"),
    ],
)
def test_a_figure_is_reached_by_its_interval_or_by_its_profile(high, share, verdict):
    assert against_report.verdict(high, 0.98, share) == verdict


def bursts(values: list[tuple[float, ...]], faults: float, cpu_s: float) -> against_rows.Bursts:
    costs = {
        "supervisor": Cost(faults=0, cpu_s=cpu_s / 4),
        "zygotes": Cost(faults=faults / 4, cpu_s=cpu_s / 4),
        "workers": Cost(faults=faults * 3 / 4, cpu_s=cpu_s / 2),
    }
    return against_rows.Bursts(calls=1000, values=values, costs=costs)


def test_ratios_are_of_pairs_and_above_one_where_the_new_side_is_better():
    old = bursts([(2.0, 100.0), (4.0, 200.0), (6.0, 300.0)], faults=200_000, cpu_s=1.0)
    new = bursts([(1.0, 110.0), (2.0, 220.0), (6.0, 330.0)], faults=204_000, cpu_s=1.1)
    found = against_report.compared("pandas", against_rows.ROWS["pandas"], old, new, 0.98)
    latency, rate = found.figures
    assert latency.ratios == [2.0, 2.0, 1.0]
    assert (latency.old, latency.new, latency.ratio) == (4.0, 2.0, 2.0)
    assert (latency.low, latency.high, latency.coverage) == (1.0, 2.0, 0.75)
    assert rate.ratios == pytest.approx([1.1, 1.1, 1.1])
    whole = found.profile[0]
    assert whole.part == "all"
    assert whole.more_faults == pytest.approx(4)
    assert whole.more_cpu_us == pytest.approx(100)
    assert [share.part for share in found.profile[1:]] == list(process_costs.PARTS)


def test_differing_packages_are_reported():
    old, new = {"numpy": "2.1", "six": "1.0"}, {"numpy": "2.2", "idna": "3.0"}
    assert against_report.differing(old, new) == {
        "idna": [None, "3.0"],
        "numpy": ["2.1", "2.2"],
        "six": ["1.0", None],
    }
    assert against_report.differing(old, old) == {}


FORKING = """
import mmap, os, sys
for line in sys.stdin:
    # As a guard, a zygote and a worker.
    if os.fork() == 0:
        if os.fork() == 0:
            if os.fork() == 0:
                with mmap.mmap(-1, 8 << 20) as memory:
                    for at in range(0, len(memory), mmap.PAGESIZE):
                        memory[at] = 1
                for _ in range(int(line)):
                    pass
                os._exit(0)
            os.wait()
            os._exit(0)
        os.wait()
        os._exit(0)
    os.wait()
    print("done", flush=True)
"""


def test_costs_of_exited_processes_are_counted():
    argv = [sys.executable, "-c", FORKING]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = process_costs.settled(process.pid)
        process.stdin.write(b"5000000\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        cost = process_costs.total(process_costs.since(before, process_costs.settled(process.pid)))
        process.stdin.close()
    assert cost.faults >= (8 << 20) / os.sysconf("SC_PAGE_SIZE") * 0.9
    assert 0.02 < cost.cpu_s < 30


def test_reading_costs_of_an_exited_process_fails():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError, match="is gone"):
        process_costs.settled(process.pid)
