"""Hypothesis on any machine: what it finds counts, not how long an example takes.

`make test` tries the same examples each time; `make test-all` others, so that what they find
is found by somebody who looks for it.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="TEST_AT_RANDOM" not in os.environ,
)
settings.load_profile("any machine")
