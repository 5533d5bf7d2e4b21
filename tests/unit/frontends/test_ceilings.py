"""Limits on what requests may ask for; each refusal names the setting."""

import json

import pytest

from flashpool.frontends import schema
from flashpool.frontends.ceilings import Ceilings
from flashpool.frontends.settings.table import Settings
from flashpool.pool.errors import InvalidRequest

FUNCTION = {"function_name": "f", "function_code": "def f(): pass"}
CLASS = {"execution_type": "class", "class_name": "C", "class_code": "class C: pass"}


def check(variables, fields):
    ceilings = Ceilings.of(Settings.from_environ(variables))
    ceilings.check(schema.decode(json.dumps({**FUNCTION, **fields}).encode()).request)


@pytest.mark.parametrize(
    ("variable", "value", "fits", "exceeds"),
    [
        ("FLASHPOOL_MAX_TIMEOUT_S", "60", {"timeout_s": 60}, {"timeout_s": 60.5}),
        ("FLASHPOOL_MAX_MEMORY_MB", "512", {"memory_mb": 512}, {"memory_mb": 513}),
        ("FLASHPOOL_MAX_GPUS_PER_CALL", "1", {"gpus": 1}, {"gpus": 2}),
        ("FLASHPOOL_MAX_GPUS_PER_CALL", "0", {"gpus": 0}, {"gpus": 1}),
        ("FLASHPOOL_FORBID", "dependencies", {"env": {"A": "1"}}, {"dependencies": ["x"]}),
        ("FLASHPOOL_FORBID", "dependencies", {"dependencies": []}, {"dependencies": ["x"]}),
        (
            "FLASHPOOL_FORBID",
            "env,system_dependencies",
            {"dependencies": ["x"]},
            {"system_dependencies": ["jq"]},
        ),
        ("FLASHPOOL_FORBID", "env", {}, {"env": {"A": "1"}}),
        ("FLASHPOOL_FORBID", "class", {}, CLASS),
        ("FLASHPOOL_FORBID", "python_version", {}, {"python_version": "3.12"}),
    ],
)
def test_requests_beyond_a_ceiling_are_refused_with_its_name(variable, value, fits, exceeds):
    check({variable: value}, fits)
    check({}, exceeds)
    with pytest.raises(InvalidRequest, match=variable):
        check({variable: value}, exceeds)


def test_nothing_is_bounded_or_forbidden_by_default():
    assert not Ceilings.of(Settings.from_environ({}))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (600, None, None)),
        ({"FLASHPOOL_MAX_TIMEOUT_S": "60"}, (60, None, None)),
        ({"FLASHPOOL_MAX_TIMEOUT_S": "900"}, (600, None, None)),
        ({"FLASHPOOL_MAX_TIMEOUT_S": "60", "FLASHPOOL_CALL_TIMEOUT_S": "none"}, (60, None, None)),
        ({"FLASHPOOL_MAX_MEMORY_MB": "512"}, (600, 512, None)),
        ({"FLASHPOOL_MAX_MEMORY_MB": "512", "FLASHPOOL_MEMORY_MB": "64"}, (600, 64, None)),
        ({"FLASHPOOL_MAX_GPUS_PER_CALL": "0"}, (600, None, 0)),
        ({"FLASHPOOL_MAX_GPUS_PER_CALL": "2"}, (600, None, None)),
        ({"FLASHPOOL_MAX_GPUS_PER_CALL": "2", "FLASHPOOL_GPUS_PER_CALL": "4"}, (600, None, 2)),
    ],
)
def test_defaults_do_not_exceed_the_ceilings(variables, expected):
    config = Settings.from_environ(variables).to_pool_config()
    assert (config.call_timeout_s, config.memory_mb, config.gpus_per_call) == expected
