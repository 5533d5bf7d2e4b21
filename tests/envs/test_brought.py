"""Packages that the requester has in its own folder: builds fit them, and leave them out."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, EnvSettings, ResolutionFailed, Spec, SpecRefused

Run = Callable[[Any], Any]


async def acquired(settings: EnvSettings, spec: Spec) -> Any:
    async with Environments(settings) as environments:
        lease = await environments.acquire(spec)
        lease.release()
        return lease.environment


async def explained(settings: EnvSettings, spec: Spec) -> dict[str, tuple[str, str]]:
    async with Environments(settings) as environments:
        found = await environments.explain(spec)
    return {one.name: (one.version, one.where) for one in found.decisions}


@pytest.fixture(autouse=True)
def framework(index: Any) -> None:
    """A framework like fastapi, whose newest version does not fit an old pydantic."""
    index.add("framework", "1.0", "alpha<2")
    index.add("framework", "2.0", "alpha>=2", "beta")


def modules(python: Path) -> set[str]:
    (folder,) = python.parent.parent.glob("lib/python3.*/site-packages")
    return {path.name for path in folder.iterdir() if path.is_dir()} - {"__pycache__"}


def test_brought_packages_constrain_the_rest_and_are_not_installed(setup: Any, run: Run) -> None:
    spec = Spec(requirements=("framework",), brought=("alpha==1.0",))
    environment = run(acquired(setup.settings(), spec))
    assert "framework" in modules(environment.python)
    assert "framework-1.0.dist-info" in modules(environment.python)
    assert not any(name.startswith("alpha") for name in modules(environment.python))


def test_brought_packages_are_part_of_the_requests_key(setup: Any, run: Run) -> None:
    async def both() -> list[Any]:
        async with Environments(setup.settings()) as environments:
            specs = [Spec(requirements=("framework",), brought=(line,)) for line in BOTH]
            leases = await asyncio.gather(*map(environments.acquire, specs))
            for lease in leases:
                lease.release()
            return [lease.environment for lease in leases]

    first, second = run(both())
    assert first.digest != second.digest
    assert "framework-2.0.dist-info" in modules(second.python)
    again = run(acquired(setup.settings(), Spec(requirements=("framework",), brought=(BOTH[0],))))
    assert again.digest == first.digest
    assert again.hit


BOTH = ("alpha==1.0", "alpha==2.0")


def test_a_conflict_is_reported_with_the_brought_packages(setup: Any, run: Run) -> None:
    spec = Spec(requirements=("framework>=2",), brought=("alpha==1.0", "other==3.1"))
    with pytest.raises(ResolutionFailed) as caught:
        run(acquired(setup.settings(), spec))
    assert "framework" in caught.value.words
    assert "alpha==1.0, other==3.1" in caught.value.words
    assert "bring versions" in caught.value.advice


def test_a_base_package_that_conflicts_with_brought_ones_is_replaced(setup: Any, run: Run) -> None:
    setup.base.install("framework==2.0")
    alone = run(explained(setup.settings(), Spec(requirements=("framework",))))
    assert alone["framework"] == ("2.0", "base")
    beside = run(
        explained(setup.settings(), Spec(requirements=("framework",), brought=("alpha==1.0",)))
    )
    assert beside["framework"] == ("1.0", "layer")
    fits = run(
        explained(setup.settings(), Spec(requirements=("framework",), brought=("alpha==2.0",)))
    )
    assert fits["framework"] == ("2.0", "base")


def test_a_brought_runtime_package_is_not_installed_again(setup: Any, run: Run) -> None:
    settings = setup.settings(runtime_pins=("alpha==2.0",))
    spec = Spec(requirements=("framework",), brought=("alpha==1.0",))
    environment = run(acquired(settings, spec))
    assert "framework-1.0.dist-info" in modules(environment.python)
    assert "alpha" not in modules(environment.python)


def test_the_key_of_a_request_without_brought_packages_is_unchanged(setup: Any, run: Run) -> None:
    from flashpool.envs.resolving.base_interpreter import Bases
    from flashpool.envs.resolving.digest import FORMAT, _hash, index_identity, request_key
    from flashpool.envs.resolving.spec import normalise

    settings = setup.settings()
    base = run(Bases().facts(setup.base.python))
    spec = normalise(Spec(requirements=("alpha",)), references=frozenset())
    before = _hash(
        "request", FORMAT, ["alpha"], index_identity(settings), base.fingerprint, sorted([])
    )
    assert request_key(spec, base, settings) == before
    brought = normalise(
        Spec(requirements=("alpha",), brought=("Beta==1.0",)), references=frozenset()
    )
    assert request_key(brought, base, settings) != before


@pytest.mark.parametrize("line", ["alpha", "alpha>=1", "-r x==1", "alpha==new"])
def test_invalid_brought_packages_are_refused(line: str, setup: Any, run: Run) -> None:
    with pytest.raises(SpecRefused, match="name==version"):
        run(acquired(setup.settings(), Spec(requirements=("beta",), brought=(line,))))
