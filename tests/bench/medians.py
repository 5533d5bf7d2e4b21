"""The median of a few values, with an interval that assumes no distribution.

The interval lies between two order statistics. The median of what the values are drawn from
is below the k-th smallest of n values only if fewer than k of them are below that median, and
that number is binomial, B(n, 1/2), whatever the distribution. So the k-th smallest and the
k-th largest enclose the median with probability 1 - 2 P(B(n, 1/2) < k); the interval takes
the largest k that keeps this at the confidence asked for.

Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition (Wiley, 2003), section
7.1. For 20 values and 95 % the interval is from the 6th smallest to the 6th largest, which
covers 95.86 %.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """``coverage`` is the probability that the interval encloses the true median. It is below
    the confidence asked for where there are too few values: the interval is then all of them.
    """

    value: float
    low: float
    high: float
    coverage: float


def median(values: Sequence[float], confidence: float = CONFIDENCE) -> Median:
    """Of independent values from one distribution."""
    ordered = sorted(values)
    count = len(ordered)
    rank, outside = 1, _below(count, 1)
    while rank < count // 2 and 1 - 2 * _below(count, rank + 1) >= confidence:
        rank += 1
        outside = _below(count, rank)
    return Median(
        value=statistics.median(ordered),
        low=ordered[rank - 1],
        high=ordered[count - rank],
        coverage=1 - 2 * outside,
    )


def _below(count: int, rank: int) -> float:
    """Probability that fewer than ``rank`` of so many fair coins show heads."""
    return float(sum(math.comb(count, heads) for heads in range(rank)) / 2**count)
