"""Environments against plain uv: `rows()` measures, the bench runner prints.

The reference of a cold build is `uv venv` and `uv pip install` of the same set, with
the same uv, cache and interpreter, and with files that are copied (or cloned, where the file
system can) as ours are: hard links would let calls write to the cache. Both caches are filled before, so that it is our
own work that is compared and not the registry's mood; ours and plain runs alternate,
and medians are compared. What calls wait for is measured: bytecode and checksums
follow after publication (the `settled` row tells how long those take).
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flashpool.envs import Environments, EnvSettings, Spec
from flashpool.envs.settings import Mode, runtime_pins
from flashpool.envs.store.eviction import DiskUse
from flashpool.envs.store.file_copies import link_mode_for
from flashpool.envs.uv_cli import find_uv

SETS = {
    "small": ("idna", "six"),
    "requests": ("requests", "rich"),
    "numpy+pandas": ("numpy", "pandas"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure beside its reference: `ratio` is value / reference."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    reach: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference if self.reference else None


def plain(folder: Path, cache: Path, requirements: tuple[str, ...], *, compiled: bool) -> float:
    """Build with plain uv, as a user without flashpool does."""
    uv = str(find_uv(EnvSettings()))
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**os.environ, "UV_CACHE_DIR": str(cache), "UV_NO_PROGRESS": "1"}
    began = time.perf_counter()
    subprocess.run(
        [uv, "venv", "-q", "--no-project", "--python", sys.executable, str(folder)],
        check=True,
        env=environment,
    )
    argv = [uv, "pip", "install", "-q", "--link-mode", link_mode_for(cache)]
    argv += ["--python", str(folder / "bin" / "python"), *requirements]
    subprocess.run(
        [*argv, *(["--compile-bytecode"] if compiled else [])], check=True, env=environment
    )
    return time.perf_counter() - began


async def ours(settings: EnvSettings, requirements: tuple[str, ...]) -> tuple[float, float]:
    """Until the lease, and until nothing is left to be done; the server has been started."""
    async with Environments(settings) as environments:
        await (await environments.open()).settled()
        began = time.perf_counter()
        lease = await environments.acquire(Spec(requirements=requirements))
        waited = time.perf_counter() - began
        assert lease.environment.origin == "built"
        lease.release()
        await (await environments.open()).settled()
        return waited, time.perf_counter() - began


def bare(root: Path) -> Path:
    """A base without packages, so that the server's packages do not count as built."""
    python = root / "base" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "base"], check=True)
    return python


def settings_of(root: Path, volume: str, local: str, mode: Mode) -> EnvSettings:
    (root / volume).mkdir(exist_ok=True)
    return EnvSettings(
        base_python=bare(root),
        volume=root / volume,
        local=root / local,
        mode=mode,
        min_free_mb=0,
    )


def forget(volume: Path) -> None:
    """Delete everything except uv's cache."""
    for name in ("envs", "requests", "leases", "archives"):
        shutil.rmtree(volume / "flashpool" / name, ignore_errors=True)


def cold(root: Path, name: str, requirements: tuple[str, ...], rounds: int) -> list[Row]:
    volume = root / "volume"
    settings = settings_of(root, "volume", "local", "volume")
    cache = volume / "flashpool" / "cache"
    pinned = (
        *requirements,
        *runtime_pins(),
    )  # both builds contain the packages that a worker needs
    asyncio.run(ours(settings, requirements))
    measured: dict[str, list[float]] = {"ours": [], "settled": [], "plain": [], "compiled": []}
    for _ in range(rounds):
        forget(volume)
        waited, settled = asyncio.run(ours(settings, requirements))
        measured["ours"].append(waited)
        measured["settled"].append(settled)
        measured["plain"].append(plain(root / "plain", cache, pinned, compiled=False))
        measured["compiled"].append(plain(root / "plain", cache, pinned, compiled=True))
    middle = {key: statistics.median(values) for key, values in measured.items()}
    how = f"--link-mode={link_mode_for(cache)}"
    return [
        Row(
            name=f"cold environment: {name}",
            value=middle["ours"],
            unit="s",
            reference=middle["plain"],
            reference_name=f"uv venv + uv pip install {how}",
            reach="<= 1.2",
        ),
        Row(
            name=f"cold environment with bytecode and seal: {name}",
            value=middle["settled"],
            unit="s",
            reference=middle["compiled"],
            reference_name="the same with --compile-bytecode",
        ),
        Row(
            name=f"its bytes on disk: {name}",
            value=megabytes(volume / "flashpool" / "envs"),
            unit="MB",
            reference=megabytes(root / "plain"),
            reference_name="the same with --compile-bytecode",
        ),
    ]


def megabytes(folder: Path) -> float:
    return DiskUse().add(folder)[0] / 1e6


async def hits(settings: EnvSettings, count: int) -> float:
    async with Environments(settings) as environments:
        spec = Spec(requirements=SETS["small"])
        (await environments.acquire(spec)).release()
        began = time.perf_counter()
        for _ in range(count):
            (await environments.acquire(spec)).release()
        return (time.perf_counter() - began) / count


async def unpacking(settings: EnvSettings, other: EnvSettings) -> tuple[float, float]:
    """A build in archive mode, and the same set on a pod with an empty disk."""
    spec = Spec(requirements=SETS["numpy+pandas"])
    async with Environments(settings) as environments:
        began = time.perf_counter()
        (await environments.acquire(spec)).release()
        built = time.perf_counter() - began
        await (await environments.open()).settled()
    async with Environments(other) as environments:
        began = time.perf_counter()
        lease = await environments.acquire(spec)
        assert lease.environment.origin == "archive"
        lease.release()
        return time.perf_counter() - began, built


def silent(_text: str) -> None:
    return


def rows(
    rounds: int = 5, folder: Path | None = None, say: Callable[[str], None] = silent
) -> list[Row]:
    """Measure everything; takes about half a minute, and the network once."""
    root = Path(tempfile.mkdtemp(prefix="envs-bench-", dir=folder))
    found: list[Row] = []
    try:
        for name, requirements in SETS.items():
            say(f"cold environment: {name}")
            found += cold(root, name, requirements, rounds)
        warm = settings_of(root, "volume", "local", "volume")
        say("memo hits")
        found.append(
            Row(
                name="environment already built",
                value=asyncio.run(hits(warm, 5000)) * 1000,
                unit="ms",
                reference=0.2,
                reference_name="0.2 ms",
                reach="<= 1",
            )
        )
        say("archive")
        pods = [settings_of(root, "volume2", pod, "archive") for pod in ("pod1", "pod2")]
        unpacked, built = asyncio.run(unpacking(*pods))
        found.append(
            Row(
                name="from an archive, empty disk: numpy+pandas",
                value=unpacked,
                unit="s",
                reference=built,
                reference_name="built with an empty cache",
            )
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return found


def main() -> None:
    for row in rows(say=lambda text: print("...", text, flush=True)):
        ratio = "" if row.ratio is None else f"{row.ratio:6.2f} x {row.reference_name} {row.reach}"
        print(f"{row.name:55} {row.value:9.4f} {row.unit:3} {ratio}")


if __name__ == "__main__":
    main()
