"""Settings of Hypothesis: examples have no deadline, so that slow machines do not fail tests.

`make test` tries the same examples each time. `make test-all` tries random ones, so that a new
failure appears in a run that looks for failures.
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
