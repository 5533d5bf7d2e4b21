import pytest

from flashpool.pool.histograms import BOUNDS, MINUTES, Histogram, LastHour


def test_buckets_are_cumulative() -> None:
    one = Histogram()
    one.add((3.0, 0.0005, 10_000.0, 0.0))
    one.add(())
    one.add((0.00051,))
    counts = {bucket.le_s: bucket.count for bucket in one.stats().buckets}
    assert counts[0.0005] == 2
    assert counts[0.001] == 3
    assert counts[5.0] == 4
    assert counts[3600.0] == 4
    assert counts[None] == one.count == 5
    assert one.stats().sum_s == pytest.approx(10_003.00101)


def test_percentiles_are_accurate_to_the_bucket() -> None:
    one = Histogram()
    one.add(number / 1000 for number in range(1000))
    assert 0.4 <= one.percentile(0.5) <= 0.6
    assert 0.9 <= one.percentile(0.95) <= 0.999
    assert one.percentile(1.0) == pytest.approx(0.999)
    assert Histogram().percentile(0.5) == 0.0


def test_one_value_is_every_percentile_at_most() -> None:
    one = Histogram()
    one.add((99_999.0,))
    assert one.percentile(0.99) <= 99_999.0
    assert one.percentile(0.99) > BOUNDS[-1]


def test_the_last_hour_drops_older_values() -> None:
    hour = LastHour()
    for minute in range(MINUTES + 30):
        hour.add(minute * 60.0, (0.1,))
        if minute % 2 == 0:
            hour.failed(minute * 60.0 + 30.0)
        hour.add(minute * 60.0 + 59.9, (0.2,))
    rows = hour.stats((MINUTES + 29) * 60.0)
    assert len(rows) == MINUTES
    assert rows[0].at == 30 * 60
    assert (rows[0].calls, rows[0].failed) == (2, 1)
    assert hour.stats((MINUTES + 29) * 60.0 + 3600) == []
