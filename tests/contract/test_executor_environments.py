"""`Pool` with packages that calls require: real builds from a small index of wheels."""

import asyncio
import functools
import importlib.metadata
import os
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest
from contract import executor_functions as there
from contract.waiting import eventually
from e2e.world import World, processes_with

from flashpool.envs import EnvSettings
from flashpool.pool import EnvironmentError, InvalidRequest, Pool
from support.interpreters import another_python


def version():
    import alpha

    return alpha.version


def python():
    return sys.version_info[:2]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def make_pool(world):
    pools = []

    def make(**parameters):
        settings = EnvSettings.from_environ(world.variables)
        pools.append(Pool(2, grace_s=0.3, **{"environments": settings, **parameters}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown()


def holders(world):
    files = (world.volume / "flashpool" / "leases").glob("*/*")
    return [path.name for path in files if path.name != "used"]


#: A stand-in for uv that prints uv's error for an untrusted certificate.
UNTRUSTING_UV = """#!/bin/sh
cat >&2 <<'END'
error: Failed to fetch: https://pypi.example/simple/tblib/
  cause: error sending request for url (https://pypi.example/simple/tblib/)
  cause: client error (Connect)
  cause: invalid peer certificate: UnknownIssuer
END
exit 2
"""

TELLING = """
import os, sys
from flashpool.envs import EnvSettings
from flashpool.pool import Pool
settings = EnvSettings.from_environ(os.environ)
with Pool(1, dependencies=["humanize"], environments=settings) as pool:
    first, second = pool.submit(abs, -1), pool.submit(abs, -2)
    kept = first.exception()
    assert kept is not second.exception()
    assert kept.details["retryable"] is False, kept.details
    second.result()
"""


def test_one_clear_error_when_the_index_is_not_trusted(world, tmp_path):
    uv = tmp_path / "uv"
    uv.write_text(UNTRUSTING_UV)
    uv.chmod(0o755)
    variables = {**os.environ, **world.variables, "FLASHPOOL_UV": str(uv)}
    run = subprocess.run(
        [sys.executable, "-c", TELLING], env=variables, capture_output=True, text=True, timeout=55
    )
    assert run.returncode == 1
    shown = run.stderr
    assert shown.count("Traceback") == 1, shown
    assert shown.count("UnknownIssuer") == 1, shown
    assert shown.count("humanize") == 1, shown
    assert "tblib" not in shown
    assert "SSL_CERT_FILE" in shown
    assert "flashpool/envs" not in shown
    assert "provisioning.py" not in shown


class TestCalls:
    def test_each_call_sees_the_packages_it_requires(self, make_pool):
        pool = make_pool(dependencies=["alpha==1.0"])
        other = pool.options(dependencies=["alpha==2.0"])
        none = pool.options(dependencies=[])
        futures = [one.submit(version) for one in (pool, other) * 20]
        assert [one.result(60) for one in futures] == ["1.0", "2.0"] * 20
        with pytest.raises(ModuleNotFoundError) as caught:
            none.submit(version).result(60)
        assert "pool.options(dependencies=[" in str(caught.value.__cause__)
        assert not hasattr(caught.value, "__notes__")
        assert none.submit(there.add, 1, 2).receipt is None

    def test_receipt_and_output_tell_of_a_build_once(self, make_pool, capsys):
        pool = make_pool(dependencies=["alpha"])
        first = pool.submit(version)
        assert first.result(60) == "2.0"
        assert b"+ alpha==2.0" in first.output
        assert "+ alpha==2.0" in capsys.readouterr().out
        receipt = first.receipt.as_dict()
        assert (receipt["environment_origin"], receipt["environment_hit"]) == ("built", False)
        again = pool.submit(version)
        assert again.result(60) == "2.0"
        assert again.output == b""
        assert again.receipt.as_dict()["environment_hit"]
        assert again.receipt.environment == receipt["environment"]

    def test_all_calls_of_a_map_wait_for_one_build(self, make_pool, world, capsys):
        world.watch_uv()
        pool = make_pool(environments=EnvSettings.from_environ(world.variables))
        with world.holding("compile"):
            results = pool.options(dependencies=["alpha"]).map(abs, range(1500))
            eventually(lambda: world.uv_runs("compile"), 30)
        assert list(results) == list(range(1500))
        assert capsys.readouterr().out.count("+ alpha==2.0") == 1
        assert len(world.uv_runs("install")) == 1

    def test_generators_work_with_packages(self, make_pool):
        items = make_pool(dependencies=["alpha"]).submit(there.count, 40).result(60)
        assert list(items) == list(range(40))

    def test_calls_with_packages_work_from_asyncio(self, make_pool):
        pool = make_pool(dependencies=["alpha"])

        async def main():
            return await asyncio.get_running_loop().run_in_executor(pool, version)

        assert asyncio.run(main()) == "2.0"

    def test_leases_are_released_when_the_pool_closes(self, make_pool, world):
        pool = make_pool(dependencies=["alpha"])
        assert pool.submit(version).result(60) == "2.0"
        assert holders(world)
        pool.shutdown()
        assert not holders(world)
        assert not world.stored("scratch")


class TestFailures:
    def test_an_unresolvable_requirement_fails_with_uvs_message(self, make_pool):
        pool = make_pool()
        future = pool.options(dependencies=["alpha==7"]).submit(version)
        with pytest.raises(EnvironmentError, match="alpha==7") as caught:
            future.result(60)
        assert caught.value.details["phase"] == "resolve"
        provision = future.receipt.provision
        assert (provision.environment, provision.origin) == ("", "failed")
        assert provision.resolve_s > 0 == provision.build_s
        stats = pool.stats()
        assert stats.outcomes == {"EnvironmentError": 1}
        (failure,) = stats.recent_failures
        assert failure.label == "version"
        assert "alpha==7" in failure.error
        assert pool.submit(there.add, 1, 2).result(60) == 3

    @pytest.mark.parametrize("requirement", ["-r x.txt", "--index-url=http://x", "a b c", "../x"])
    def test_a_malformed_requirement_is_refused(self, make_pool, requirement):
        with pytest.raises(InvalidRequest):
            make_pool(dependencies=[requirement]).submit(version).result(60)

    @pytest.mark.parametrize(
        "options",
        [
            {"dependencies": "alpha"},
            {"dependencies": [3]},
            {"dependencies": [""]},
            {"system_dependencies": "curl"},
            {"python_version": 3.12},
            {"python_version": "2.7"},
            {"python_version": "latest"},
        ],
    )
    def test_invalid_values_are_refused(self, make_pool, options):
        (name,) = options
        with pytest.raises(InvalidRequest, match=name):
            make_pool().options(**options)
        with pytest.raises(InvalidRequest, match=name):
            Pool(**options)

    def test_an_invalid_store_setting_is_refused(self):
        with pytest.raises(InvalidRequest, match="environments must be an EnvSettings"):
            Pool(environments="/volume")

    def test_arguments_that_cannot_be_pickled(self, make_pool):
        pool = make_pool(dependencies=["alpha"])
        with pytest.raises(TypeError):
            pool.submit(there.identity, threading.Lock()).result(30)


class TestWaiting:
    """Calls that wait while uv is blocked."""

    @pytest.fixture
    def held(self, make_pool, world):
        world.watch_uv()
        pool = make_pool(environments=EnvSettings.from_environ(world.variables))
        with world.holding("compile"):
            yield pool, pool.options(dependencies=["alpha"])
            pool.shutdown(cancel_futures=True)

    def test_calls_without_packages_run_meanwhile(self, held):
        pool, view = held
        waits = view.submit(version)
        assert pool.submit(there.add, 1, 2).result(60) == 3
        assert not waits.running()
        assert not waits.done()
        assert repr(pool).endswith("1 outstanding>")

    def test_cancelling_the_last_waiting_call_ends_the_build(self, held, world):
        pool, view = held
        futures = [view.submit(version) for _ in range(3)]
        eventually(lambda: world.uv_runs("compile"), 30)
        assert all(one.cancel() for one in futures)
        assert len(wait(futures, 30).done) == 3
        eventually(lambda: pool.stats().outcomes == {"Cancelled": 3})
        eventually(lambda: not processes_with(str(world.folder / "uv")))

    def test_a_call_after_the_cancellation_starts_a_new_build(self, held, world):
        _, view = held
        assert view.submit(version).cancel()
        again = view.submit(version)
        (world.folder / "hold-compile").unlink()
        assert again.result(60) == "2.0"

    def test_shutdown_with_cancel_futures_ends_the_build(self, held, world):
        pool, view = held
        futures = [view.submit(version) for _ in range(5)]
        eventually(lambda: world.uv_runs("compile"), 30)
        pool.shutdown(cancel_futures=True)
        assert all(one.cancelled() for one in futures)
        # The whole process group is killed; the kernel may take a moment to end the last process.
        eventually(lambda: not processes_with(str(world.folder / "uv")))

    def test_shutdown_waits_for_the_build(self, held, world):
        pool, view = held
        future = view.submit(version)
        eventually(lambda: world.uv_runs("compile"), 30)
        pool.shutdown(wait=False)
        (world.folder / "hold-compile").unlink()
        assert future.result(60) == "2.0"


class Scale:
    """A class that travels by value to another Python, with its methods."""

    def __init__(self, factor):
        self.factor = factor

    def times(self, number):
        return self.factor * number


class Twice(Scale):
    def __init__(self):
        super().__init__(2)


def add_installed(world, name):
    """Add an installed pure-Python package to the index, for any version of Python."""
    found = importlib.metadata.distribution(name)
    sources = {str(path): path.locate() for path in found.files if path.suffix == ".py"}
    files = {
        path.removeprefix(f"{name}/"): source.read_bytes()
        for path, source in sources.items()
        if path.startswith(f"{name}/")
    }
    world.index.add(name, found.version, files=files)


@pytest.fixture
def wanted(monkeypatch):
    version, path = another_python()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return version


exec("def made(self): return 1", made_here := {})
Made = type("Made", (), {"method": made_here["made"]})


class TestAnotherPython:
    @pytest.fixture
    def pool(self, make_pool, wanted, world):
        add_installed(world, "cloudpickle")
        add_installed(world, "tblib")
        return make_pool(python_version=wanted)

    def test_functions_of_files_travel_as_source(self, pool, wanted):
        major, minor = map(int, wanted.split("."))
        assert pool.submit(python).result(60) == (major, minor)
        # Pytest loads this module: a worker would not find it, so its functions travel by value.
        factor = 3

        def scaled(number, *, plus=0):
            return [factor * one + plus for one in range(number)]

        assert pool.submit(scaled, 3, plus=1).result(60) == [1, 4, 7]
        assert pool.submit(functools.partial(scaled, 2)).result(60) == [0, 3]
        assert list(pool.map(scaled, [1, 2])) == [[0], [0, 3]]
        assert pool.submit(Twice().times, 4).result(60) == 8

    def test_tracebacks_show_the_lines_of_the_file(self, pool):
        def fails():
            raise ValueError("here")

        error = pool.submit(fails).exception(60)
        assert isinstance(error, ValueError)
        line = fails.__code__.co_firstlineno + 1
        assert f"line {line}, in fails" in str(error.__cause__)

    def test_a_function_without_source_is_refused(self, pool, wanted):
        first, second = lambda: 1, lambda: 2
        assert [pool.submit(one).result(60) for one in (first, second)] == [1, 2]
        (split,) = (
            lambda:
            1,
        )  # fmt: skip
        with pytest.raises(InvalidRequest, match=f"<lambda> .*cannot go to Python {wanted}"):
            pool.submit(split).result(60)
        names = {}
        exec("def made(): return 1", names)
        for submitted in (pool.submit(names["made"]), pool.options(timeout=9).submit(Made)):
            with pytest.raises(InvalidRequest, match=r"made .*Define it with def in a file"):
                submitted.result(60)

    def test_a_function_that_travels_by_reference_needs_no_source(self, pool):
        assert pool.submit(pow, 2, 5).result(60) == 32
