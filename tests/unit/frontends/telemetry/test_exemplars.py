from flashpool.frontends.telemetry.exemplars import Exemplars
from flashpool.pool.calls import NOWHERE, Provision, Receipt, unprovided
from flashpool.pool.histograms import BOUNDS, Histogram
from flashpool.pool.recorder import PHASES


def known(exemplars: Exemplars) -> set[str]:
    buckets = range(len(BOUNDS) + 1)
    return {name for name in PHASES for one in buckets if exemplars.get(name, one)}


def test_an_exemplars_bucket_is_that_of_the_histogram() -> None:
    for seconds in (0.0, 0.0005, 0.0006, 0.5, 3600.0, 1e6):
        exemplars, histogram = Exemplars(), Histogram()
        exemplars.add(Receipt(total_s=seconds, attempts=1), "a", 1.0)
        histogram.add([seconds])
        assert exemplars.get("total", histogram.counts.index(1)) == ("a", seconds, 1.0)


def test_a_bucket_keeps_its_latest_call() -> None:
    exemplars = Exemplars()
    for name, seconds in (("a", 0.3), ("b", 0.4), ("c", 0.6)):
        exemplars.add(Receipt(run_s=seconds, attempts=1), name, 1.0)
    found = [exemplars.get("run", index) for index in range(len(BOUNDS) + 1)]
    assert [one.trace_id for one in found if one] == ["b", "c"]


def test_only_counted_phases_have_exemplars() -> None:
    pool = {"queue", "start", "run", "exit", "total"}
    for receipt, phases in (
        (Receipt(attempts=1), pool),
        (Receipt(attempts=0), {"queue", "total"}),
        (Receipt(attempts=1, provision=Provision(origin="built")), set(PHASES)),
        (Receipt(provision=unprovided(1.0, "build")), set()),
        (Receipt(provision=NOWHERE), set()),
    ):
        exemplars = Exemplars()
        exemplars.add(receipt, "a", 1.0)
        assert known(exemplars) == phases
