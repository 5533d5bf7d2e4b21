"""Which failures to load an app are temporary."""

from typing import Any

import pytest

from flashpool.envs import errors as envs
from flashpool.pool.exit_causes import Cause
from flashpool.pool.residents.apps import failures


@pytest.mark.parametrize(
    ("error_type", "details", "passes"),
    [
        ("ModuleNotFoundError", {}, False),
        # A class of the user may have any name.
        ("EnvironmentError", {}, False),
        ("WorkerCrashed", {"signal": "SIGSEGV"}, False),
        ("Timeout", {}, False),
        ("Timeout", {"phase": "build"}, True),
        ("EnvironmentStartFailed", {failures.NO_WORKER: True}, True),
        *(
            ("EnvironmentError", {"kind": kind.__name__}, passes)
            for kind, passes in {
                envs.ResolutionFailed: False,
                envs.InterpreterMissing: False,
                envs.BuildFailed: False,
                envs.RegistryUnreachable: True,
                envs.StoreUnavailable: True,
                envs.DiskFull: True,
                envs.MachineShort: True,
            }.items()
        ),
    ],
)
def test_temporary_failures_are_told_from_permanent_ones(
    error_type: str, details: dict[str, Any], passes: bool
) -> None:
    cause = Cause(error_type=error_type, message="", details=details)
    assert failures.passes(cause) is passes


def test_the_listed_names_are_real_error_classes() -> None:
    assert all(hasattr(envs, name) for name in failures._OWN)
