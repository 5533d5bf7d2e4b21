"""System packages, with stand-ins for dpkg and apt: what is asked of them, and when."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import SystemPackagesFailed, system_packages
from flashpool.envs.system_packages import SystemPackages

Run = Callable[[Any], Any]

_DPKG = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --*) ;; '${'*) ;; *)
  [ -e {state}/$1 ] && printf '%s\\tinstalled\\t1.0\\n' "$1";; esac; shift; done
exit 0
"""
_APT = """#!/bin/sh
echo "$@" >> {log}
[ -e {state}/.fail ] && {{ echo "E: Unable to locate package nonesuch" >&2; exit 100; }}
case "$1" in install)
  [ -e {state}/.busy ] && exit 99
  touch {state}/.busy
  sleep 0.1
  while [ "$1" != "--" ]; do
    case "$1" in Dir::Cache::archives=*) touch "${{1#*=}}/$(date +%N).deb";; esac; shift
  done; shift
  for name in "$@"; do touch {state}/$name; done
  rm {state}/.busy;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with stand-ins, which keep their state and log in a directory."""
    state = tmp_path / "state"
    folder = tmp_path / "bin"
    for path in (state, folder):
        path.mkdir()
    texts = {"dpkg-query": _DPKG.replace("{state}", str(state))}
    texts["apt-get"] = _APT.format(state=state, log=tmp_path / "log")
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(system_packages, "_ARCHIVES", tmp_path / "archives")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", _only(folder))
    return tmp_path


def _only(folder: Path) -> Callable[[str], str | None]:
    return lambda name: str(folder / name) if (folder / name).exists() else None


def packages(machine: Path) -> SystemPackages:
    return SystemPackages(debs=machine / "debs", limit_s=20, lock=machine / "lock")


def log(machine: Path) -> list[str]:
    path = machine / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_what_is_there_is_left_alone(machine: Path, run: Run) -> None:
    (machine / "state" / "curl").touch()
    run(packages(machine).ensure(("curl",), print))
    run(packages(machine).ensure((), print))
    assert log(machine) == []


def test_installed_once_for_many_at_once(machine: Path, run: Run) -> None:
    """Two pools on one machine, each asked several times, in different sets."""

    async def main() -> None:
        one, two = packages(machine), packages(machine)
        asked = [one.ensure(("curl", "jq"), print) for _ in range(3)]
        asked += [two.ensure(("libgl1",), print) for _ in range(3)]
        asked += [two.ensure(("curl", "jq"), print)]
        await asyncio.gather(*asked)

    run(main())
    installed = [line for line in log(machine) if line.startswith("install")]
    assert 2 <= len(installed) <= 3
    assert all("--no-install-recommends" in line for line in installed)
    assert {path.name for path in (machine / "state").iterdir()} == {"curl", "jq", "libgl1"}


def test_debs_are_kept_for_the_next_machine(machine: Path, run: Run) -> None:
    run(packages(machine).ensure(("curl",), print))
    assert list((machine / "debs").glob("*/*.deb"))


def test_a_failure_has_apt_s_words(machine: Path, run: Run) -> None:
    (machine / "state" / ".fail").touch()
    with pytest.raises(SystemPackagesFailed, match="Unable to locate package nonesuch") as caught:
        run(packages(machine).ensure(("nonesuch",), print))
    assert (caught.value.requirement, caught.value.phase) == ("nonesuch", "system")
    assert any(line.startswith("update") for line in log(machine)), "old lists are no excuse"


def test_without_root_it_says_so(machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemPackagesFailed, match="need root"):
        run(packages(machine).ensure(("curl",), print))
    assert log(machine) == []
