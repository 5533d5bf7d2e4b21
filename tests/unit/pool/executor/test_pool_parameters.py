"""Parameters of `Pool`: each invalid value is refused by name, before anything starts."""

import math
from dataclasses import fields

import pytest

from flashpool.pool import InvalidRequest, Pool
from flashpool.pool.config import PoolConfig
from flashpool.pool.executor.pool_parameters import KINDS, check

NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("queue_limit", value) for value in (-1, 1.5, NAN, "10", True)],
        *[("max_workers", value) for value in (1.5, True, "2", 10**6)],
        *[("timeout", value) for value in (0, -1, NAN, INFINITE, "1", True)],
        *[("queue_timeout_s", value) for value in (0, -1, NAN, INFINITE)],
        *[("memory_mb", value) for value in (0, -1, 15, 1.5, NAN, 1 << 31)],
        *[("grace_s", value) for value in (-0.1, NAN, INFINITE, None)],
        *[("start_timeout_s", value) for value in (0, NAN, None)],
        *[("output_limit", value) for value in (-1, 1.5, None)],
        *[("max_spares", value) for value in (-1, 1.5, None)],
        *[("spare_idle_s", value) for value in (0, NAN)],
        *[("max_environments", value) for value in (0, 0.5)],
        *[("environment_idle_s", value) for value in (0, NAN)],
        *[("start_method", value) for value in ("forkserver", None, 3)],
        *[("memory_tricks", value) for value in ("layout", ["layouts"], None, [1])],
        *[("log_level", value) for value in ("LOUD", 10, None)],
        *[("preload", value) for value in ("numpy", 3, [3], [""])],
        *[("preload_learn", value) for value in ("*", None)],
        *[("extra_path", value) for value in ("/a", [1])],
        ("worker_env", []),
        *[("workdir", value) for value in (3, "", "a\0b", "/nope", "/dev/null")],
        *[("instance_concurrency", value) for value in (0, 1001, True)],
        *[("base_python", value) for value in (3, "", None)],
        *[("show_output", value) for value in ("no", None)],
    ],
)
def test_invalid_values_are_refused_by_name(name, value):
    with pytest.raises(InvalidRequest, match=f"{name}.*; got ") as caught:
        Pool(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("variables", [{"A": 1}, {"A=B": "1"}, {"": "1"}, {"A": "\0"}])
def test_invalid_environment_variables_are_refused(variables):
    with pytest.raises(InvalidRequest, match=r"^worker_env: .*variable"):
        Pool(worker_env=variables)


def test_the_error_says_which_values_are_valid():
    with pytest.raises(InvalidRequest) as caught:
        Pool(queue_limit=-1)
    assert str(caught.value) == "queue_limit must be a whole number, 0 or more, or None; got -1"


@pytest.mark.parametrize("name", ["slots", "call_timeout_s", "max_tasks_per_child"])
def test_unknown_parameters_are_refused(name):
    with pytest.raises(InvalidRequest, match=f"unknown parameter {name}.*valid names: max_workers"):
        Pool(**{name: 1})


@pytest.mark.parametrize("value", [0, -1])
def test_max_workers_below_one_raises_as_in_the_standard_library(value):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Pool(value)


def test_valid_values_are_accepted(tmp_path):
    pool = Pool(
        3,
        timeout=1,
        memory_mb=64,
        queue_limit=0,
        queue_timeout_s=None,
        grace_s=0,
        max_spares=0,
        preload=["json"],
        preload_learn=(),
        memory_tricks=["layout"],
        extra_path=[tmp_path],
        workdir=tmp_path,
        worker_env={"A": "1"},
        log_level="DEBUG",
    )
    config = pool._config
    assert (config.slots, config.call_timeout_s, config.memory_mb) == (3, 1, 64)
    assert (config.preload, config.extra_path) == (("json",), (str(tmp_path),))
    assert config.workdir == str(tmp_path)
    assert config.memory_tricks == ("layout",)


def test_defaults_are_accepted():
    defaults = PoolConfig()
    names = {one.name for one in fields(PoolConfig)} & KINDS.keys()
    check({name: getattr(defaults, name) for name in names})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("idempotent", value) for value in ("no", 1, None)],
        *[("refresh", value) for value in (1, "yes")],
        *[("memory_mb", value) for value in (1, 15, 1 << 31)],
    ],
)
def test_invalid_options_are_refused(name, value):
    with pytest.raises(InvalidRequest, match=f"^{name} must be .*; got ") as caught:
        Pool().options(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [0, 1001, 1.5, True])
def test_an_invalid_max_concurrency_is_refused(value):
    with pytest.raises(
        InvalidRequest, match=r"^max_concurrency must be a whole number, 1 to 1000; got"
    ):
        Pool().instance(object, max_concurrency=value)


def test_a_relative_workdir_is_resolved_when_the_pool_is_created(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert check({"workdir": "there"})["workdir"] == str(tmp_path / "there")
