"""Which failures are remembered, for which requests; each is typed and says what to do."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import (
    Environments,
    InterpreterMissing,
    RegistryUnreachable,
    Spec,
    SpecRefused,
    SystemPackagesFailed,
)
from flashpool.envs.acquiring import environment_choice
from flashpool.envs.building import system_packages
from flashpool.envs.uv_words import classify

Run = Callable[[Any], Any]


def test_a_failure_of_system_packages_fails_no_other_request(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request with the same requirements does not ask for the system packages."""

    async def refuse(self: object, names: tuple[str, ...], _progress: object) -> None:
        raise SystemPackagesFailed(f"no {names}")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            asked = Spec(requirements=("alpha",), system_packages=("nonesuch",))
            with pytest.raises(SystemPackagesFailed):
                await environments.acquire(asked)
            with await environments.acquire(Spec(requirements=("alpha",))) as found:
                assert found.origin == "built"
            with pytest.raises(SystemPackagesFailed):
                await environments.acquire(asked)

    monkeypatch.setattr(system_packages.SystemPackages, "ensure", refuse)
    run(main())


def test_a_missing_python_is_searched_for_once(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search starts a process for every candidate on PATH."""
    searches: list[str] = []
    real = environment_choice.find_interpreter

    async def counted(version: str, *rest: Any) -> Any:
        searches.append(version)
        return await real(version, *rest)

    monkeypatch.setattr(environment_choice, "find_interpreter", counted)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            for name in ("alpha", "beta"):
                with pytest.raises(InterpreterMissing, match=r"Python 3\.77 is not installed"):
                    await environments.acquire(Spec(requirements=(name,), python_version="3.77"))
            assert searches == ["3.77"]
            again = Spec(requirements=("alpha",), python_version="3.77", refresh=True)
            with pytest.raises(InterpreterMissing):
                await environments.acquire(again)
            assert searches == ["3.77"] * 2

    run(main())


@pytest.mark.parametrize(
    "marker", ["os_name ~= 'posix'", "platform_version ~= '1'", "extra ~= 'x'"]
)
def test_meaningless_markers_in_requests_are_refused(marker: str, setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=(f"alpha; {marker}",)))

    with pytest.raises(SpecRefused, match="cannot be compared") as caught:
        run(main())
    assert caught.value.advice


def test_meaningless_markers_of_packages_always_hold(
    setup: Any, run: Run, version_in: Callable[[Path, str], str]
) -> None:
    """uv treats them so; they come from packages, so requests are not refused for them."""
    setup.base.index.add("odd", "1.0", "alpha ; os_name ~= 'posix'")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(Spec(requirements=("odd",))) as found:
                assert version_in(found.python, "alpha") == "2.0"

    run(main())


def test_the_error_for_a_base_that_does_not_run_says_why(
    setup: Any, run: Run, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'libpython3.12.so.1.0: cannot open' >&2\nexit 127\n")
    broken.chmod(0o755)

    async def main() -> None:
        async with Environments(setup.settings(base_python=broken)) as environments:
            await environments.acquire(Spec(requirements=("alpha",)))

    with pytest.raises(InterpreterMissing, match="cannot open") as caught:
        run(main())
    assert "FLASHPOOL_BASE_PYTHON" in caught.value.advice


@pytest.mark.parametrize(
    "words",
    [
        (
            "fatal: unable to access 'https://x/': Failed to connect to x port 443 after 0 ms: "
            "Couldn't connect to server"
        ),
        "fatal: unable to access 'https://x/': Recv failure: Connection reset by peer",
        "fatal: unable to access 'https://x/': The requested URL returned error: 503",
        "ssh: connect to host x port 22: Connection refused",
    ],
)
def test_an_unreachable_repository_is_retryable(words: str) -> None:
    failure = classify(
        "error: Failed to download and build `x @ git+https://x`\n"
        f"  cause: Git operation failed\n  cause: {words}",
        "resolve",
    )
    assert isinstance(failure, RegistryUnreachable)
    assert failure.retryable


def test_the_error_for_a_failed_build_says_what_to_do() -> None:
    for words in ("error: Failed to build `x==1`\n  cause: boom", "error: what is this"):
        assert classify(words, "build").advice


def test_a_failed_shared_build_raises_for_each_request(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            asked = [environments.acquire(Spec(requirements=("alpha>=9",))) for _ in range(5)]
            said = await asyncio.gather(*asked, return_exceptions=True)
            assert len({id(each) for each in said}) == 5
            assert {type(each).__name__ for each in said} == {"ResolutionFailed"}

    run(main())
