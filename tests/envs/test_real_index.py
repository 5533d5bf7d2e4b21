"""Tests with the real package index: small packages, and two versions of numpy."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, EnvSettings, RegistryUnreachable, Spec
from support.interpreters import virtualenv

Run = Callable[[Any], Any]


def settings(tmp_path: Path, **changes: Any) -> EnvSettings:
    volume = tmp_path / "volume"
    volume.mkdir(exist_ok=True)
    values = {"volume": volume, "local": tmp_path / "local", "mode": "volume", "min_free_mb": 0}
    return EnvSettings(**{**values, "base_python": bare(tmp_path), **changes})


def bare(tmp_path: Path) -> Path:
    folder = tmp_path / "bare"
    return folder / "bin" / "python" if folder.exists() else virtualenv(folder)


def ask(python: Path, code: str) -> str:
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_small_package_is_built(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with Environments(settings(tmp_path)) as environments:
            with await environments.acquire(Spec(requirements=("Idna", "six"))) as found:
                assert ask(found.python, "import idna, six, cloudpickle, tblib; print(1)") == "1"
                digest = found.digest
            with await environments.acquire(Spec(requirements=("SIX ", "idna"))) as found:
                assert (found.digest, found.hit) == (digest, True)

    run(main())


def test_an_unreachable_index_serves_memos_and_fails_otherwise(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memo of the last resolution is used; without a memo, the request fails."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    usual = settings(tmp_path, memo_s=0.0)
    spec = Spec(requirements=("six",))

    async def main() -> None:
        async with Environments(usual) as environments:
            (await environments.acquire(spec)).release()
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        said: list[str] = []
        async with Environments(usual) as environments:
            with await environments.acquire(spec, progress=said.append) as found:
                assert found.origin == "disk"
            assert any("resolved last time" in line for line in said)
            with pytest.raises(RegistryUnreachable) as caught:
                await environments.acquire(Spec(requirements=("wheel",)))
            assert caught.value.retryable

    run(main())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_versions_of_numpy_work_side_by_side(tmp_path: Path, run: Run) -> None:
    """Each call sees its own version, a hundred times, concurrently; nothing is built twice."""
    if sys.version_info >= (3, 13):
        pytest.skip("no numpy 1.26 for this Python")
    pins = {
        "1.26.4": Spec(requirements=("numpy==1.26.4",)),
        "2.2.6": Spec(requirements=("numpy==2.2.6",)),
    }

    async def main() -> None:
        async with Environments(settings(tmp_path)) as environments:

            async def one(number: int) -> None:
                version = ("1.26.4", "2.2.6")[number % 2]
                with await environments.acquire(pins[version]) as found:
                    if number < 10:
                        code = "import numpy; print(numpy.__version__)"
                        assert await asyncio.to_thread(ask, found.python, code) == version
                    assert found.root is not None
                    assert next(found.root.glob(f"lib/*/site-packages/numpy-{version}.dist-info"))

            await asyncio.gather(*[one(number) for number in range(100)])
            for pin in pins.values():
                with await environments.acquire(pin) as found:
                    assert found.origin == "memo"
            resolved = await environments.acquire(Spec(requirements=("numpy<2.3,>=2.2.6",)))
            same = await environments.acquire(pins["2.2.6"])
            assert resolved.environment.root == same.environment.root
            resolved.release()
            same.release()

    run(main())
