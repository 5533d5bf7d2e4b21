"""Messages of outcomes."""

from __future__ import annotations

import pytest

from flashpool.pool.calls import Outcome
from flashpool.pool.workers.ends import outcomes


def test_the_reported_memory_is_never_below_the_limit():
    """The memory exceeds the limit by less than a megabyte."""
    stop = outcomes.used_too_much(100, (100 << 20) + 4096)
    assert stop.details["measured_mb"] == 101
    assert "used 101 MB, and the limit is 100 MB" in stop.message


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("cv2", "which the package opencv-python-headless provides (or opencv-python): "),
        ("pkg_resources", "which the package setuptools<82 provides: "),
        ("google.protobuf", "which the package protobuf provides: "),
        ("nobody_knows", "no module 'nobody_knows': "),
    ],
)
def test_advice_names_the_package_of_a_missing_module(module: str, words: str) -> None:
    outcome = Outcome(
        error_type="ModuleNotFoundError",
        error="Traceback ...",
        details={"missing_module": module},
        from_user=True,
    )
    told = outcomes.told(outcome, 'name it, as in ["a-package"]')
    assert f"no module {module!r}" in told
    assert words in told
    assert ("a-package" in told) is (module == "nobody_knows")
