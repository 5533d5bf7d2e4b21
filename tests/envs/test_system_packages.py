"""System packages, with stand-ins for dpkg and apt: which commands run, and when."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import CompilerMissing, Environments, Spec, SystemPackagesFailed
from flashpool.envs.building import kept_debs, system_packages
from flashpool.envs.building.system_packages import SystemPackages

Run = Callable[[Any], Any]

_DPKG = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --*) ;; '${'*) ;; *)
  [ -e {state}/$1 ] && printf '%s\\tinstalled\\t1.0\\n' "$1";; esac; shift; done
exit 0
"""
_REPAIR = """#!/bin/sh
[ "$*" = "--configure -a" ] && rm -f {state}/.interrupted
"""
_APT = """#!/bin/sh
case "$*" in *--print-uris*) cat {state}/.listed 2>/dev/null; exit 0;; esac
echo "$@" >> {log}
[ -e {state}/.fail ] && {{ echo "E: Unable to locate package nonesuch" >&2; exit 100; }}
[ -e {state}/.full ] && {{ echo "E: You don't have enough free space in /x." >&2; exit 100; }}
[ -e {state}/.interrupted ] && {{
  echo "E: dpkg was interrupted, you must manually run 'dpkg --configure -a'" >&2; exit 100; }}
case "$1" in install)
  [ -e {state}/.busy ] && exit 99
  touch {state}/.busy
  sleep 0.1
  folder=$(sed -n 's/^Dir::Cache::archives "\\(.*\\)";$/\\1/p' "$APT_CONFIG")
  for deb in "$folder"/*.deb; do [ -e "$deb" ] && cp "$deb" {state}/.found; done
  [ -e {state}/.found ] || echo downloaded > "$folder/curl_1.0_all.deb"
  while [ "$1" != "--" ]; do shift; done; shift
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
    texts["dpkg"] = _REPAIR.format(state=state)
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


def lists(machine: Path, deb: Path) -> None:
    """Add a file with its current hash to apt's lists."""
    data = deb.read_bytes()
    line = f"'http://x/{deb.name}' {deb.name} {len(data)} SHA256:{hashlib.sha256(data).hexdigest()}"
    (machine / "state" / ".listed").write_text(f"{line}\n")


def log(machine: Path) -> list[str]:
    path = machine / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_installed_packages_are_left_alone(machine: Path, run: Run) -> None:
    (machine / "state" / "curl").touch()
    run(packages(machine).ensure(("curl",), print))
    run(packages(machine).ensure((), print))
    assert log(machine) == []


def test_concurrent_requests_install_a_package_once(machine: Path, run: Run) -> None:
    """Two pools on one machine, each with several requests for different sets."""

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
    found = {path.name for path in (machine / "state").iterdir() if path.name[0] != "."}
    assert found == {"curl", "jq", "libgl1"}


def test_a_set_is_installed_once_on_a_machine(machine: Path, run: Run) -> None:
    """Even if two processes ask at the same instant: the second finds the set installed."""

    async def main() -> None:
        pools = [packages(machine) for _ in range(4)]
        await asyncio.gather(*[pool.ensure(("curl", "jq"), print) for pool in pools])

    run(main())
    assert [line.split()[0] for line in log(machine)] == ["install"]


def test_a_call_that_waits_for_the_lock_can_be_cancelled(machine: Path, run: Run) -> None:
    """Another process installs for minutes; a cancelled call leaves no thread behind."""

    async def main() -> None:
        said: list[str] = []
        with (machine / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            asked = asyncio.ensure_future(packages(machine).ensure(("curl",), said.append))
            deadline = time.monotonic() + 30
            while not any("Another process installs system packages" in line for line in said):
                assert time.monotonic() < deadline, said
                await asyncio.sleep(0.01)
            asked.cancel()
            await asyncio.wait({asked})
            # The loop ends only after all its threads; the lock is still held.
            await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 30)
        assert log(machine) == []

    run(main())


_HOLDER = """
import asyncio, sys
from pathlib import Path
from flashpool.envs.building.system_packages import _machine_lock

async def main():
    async with _machine_lock(Path(sys.argv[1]), print):
        print("held", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


def test_a_lock_whose_owner_was_killed_is_free(machine: Path, run: Run) -> None:
    """The lock file stays; so does its content with filelock 4.2 or later (Python 3.11)."""
    (machine / "lock").write_text("somebody's")
    said: list[str] = []
    command = [sys.executable, "-c", _HOLDER, str(machine / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"

        async def main() -> None:
            asked = asyncio.ensure_future(packages(machine).ensure(("curl",), said.append))
            deadline = time.monotonic() + 30
            while not said:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert log(machine) == []
            holder.kill()
            await asyncio.wait_for(asked, 30)

        try:
            run(main())
        finally:
            holder.kill()
    assert said[0] == "Another process installs system packages: waiting for it"
    assert (machine / "state" / "curl").exists()
    assert (machine / "lock").read_text() == ("somebody's" if sys.version_info >= (3, 11) else "")


def test_the_lock_follows_no_link(machine: Path, run: Run) -> None:
    """The lock is in /tmp, where any user may plant a link, and root opens it."""
    (machine / "precious").write_text("precious")
    (machine / "lock").symlink_to(machine / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        run(packages(machine).ensure(("curl",), print))
    assert (machine / "precious").read_text() == "precious"
    assert log(machine) == []


@pytest.mark.parametrize("tool", ["apt-get", "nala"])
def test_downloaded_debs_are_kept_for_the_next_machine(tool: str, machine: Path, run: Run) -> None:
    if tool == "nala":
        (machine / "bin" / "nala").write_text((machine / "bin" / "apt-get").read_text())
        (machine / "bin" / "nala").chmod(0o755)
        (machine / "bin" / "apt-get").unlink()
        (machine / "bin" / "apt-get").symlink_to("nala")
    run(packages(machine).ensure(("curl",), print))
    (kept,) = (machine / "debs").glob("*/*.deb")
    assert kept.read_text() == "downloaded\n"
    assert not list((machine / "archives").glob("*.deb"))
    lists(machine, kept)
    (machine / "state" / "curl").unlink()
    run(packages(machine).ensure(("curl",), print))
    assert (machine / "state" / ".found").read_text() == "downloaded\n"
    assert kept.exists()


def test_an_interrupted_dpkg_is_repaired(machine: Path, run: Run) -> None:
    """A call cancelled while packages are unpacked must not fail all later ones."""
    (machine / "state" / ".interrupted").touch()
    run(packages(machine).ensure(("curl",), print))
    assert (machine / "state" / "curl").exists()


def test_a_full_disk_is_reported_as_the_machines(machine: Path, run: Run) -> None:
    """The error must not advise a larger volume, which would not help."""
    (machine / "state" / ".full").touch()
    with pytest.raises(SystemPackagesFailed, match="no space for system packages") as caught:
        run(packages(machine).ensure(("curl",), print))
    assert "the machine's own disk" in caught.value.advice


def test_a_failure_contains_apts_message(machine: Path, run: Run) -> None:
    (machine / "state" / ".fail").touch()
    with pytest.raises(SystemPackagesFailed, match="Unable to locate package nonesuch") as caught:
        run(packages(machine).ensure(("nonesuch",), print))
    assert (caught.value.requirement, caught.value.phase) == ("nonesuch", "system")
    assert any(line.startswith("update") for line in log(machine)), "old lists are no excuse"


def test_without_root_the_error_says_so(
    machine: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemPackagesFailed, match="need root"):
        run(packages(machine).ensure(("curl",), print))
    assert log(machine) == []


_BACKEND = """
import os, shutil, subprocess
def build_wheel(folder, *rest):
    subprocess.run(["cc", "--version"], check=True)
    return os.path.basename(shutil.copy({wheel!r}, folder))
"""


@pytest.fixture(params=["at the build", "for the metadata"])
def compiled(
    request: pytest.FixtureRequest, machine: Path, setup: Any, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A requirement that runs `cc`, on a machine where apt is what brings it."""
    tools = machine / "bin"
    for name in ("sh", "touch", "cat", "cp", "sleep", "rm", "env", "sed"):
        found = next(path for path in (Path("/usr/bin", name), Path("/bin", name)) if path.exists())
        (tools / name).symlink_to(found)
    text = (tools / "apt-get").read_text()
    cc = f"printf '#!/bin/sh\\nexit 0\\n' > {tools}/cc; /bin/chmod +x {tools}/cc"
    (tools / "apt-get").write_text(text.replace("rm ", f"{cc}; rm ", 1))
    monkeypatch.setenv("PATH", str(tools))
    known = request.param == "at the build"
    version = 'version = "1.0"' if known else 'dynamic = ["version"]'
    source = machine / "native"
    source.mkdir()
    wheel = setup.base.index.add("native", "1.0")
    (source / "own.py").write_text(_BACKEND.format(wheel=str(wheel)))
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        f'[project]\nname = "native"\n{version}\n'
    )
    return f"native @ {source.as_uri()}"


def test_a_missing_compiler_is_reported(compiled: str, machine: Path, setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.acquire(Spec(requirements=(compiled,)))

    with pytest.raises(CompilerMissing) as caught:
        run(main())
    assert "FLASHPOOL_AUTO_BUILD_TOOLS" in caught.value.advice
    assert caught.value.requirement.startswith("native @")
    assert log(machine) == []


def test_build_tools_are_installed_where_allowed(
    compiled: str, machine: Path, setup: Any, run: Run
) -> None:
    """Two concurrent sets need the tools: these are installed once, and both sets are built."""
    said: list[str] = []

    async def main() -> None:
        async with Environments(setup.settings(auto_build_tools=True)) as environments:
            asked = [(compiled,), (compiled, "alpha")]
            leases = await asyncio.gather(
                *[
                    environments.acquire(Spec(requirements=each), progress=said.append)
                    for each in asked
                ]
            )
            for lease in leases:
                assert lease.environment.origin == "built"
                lease.release()

    run(main())
    installed = [line for line in log(machine) if line.startswith("install")]
    assert len(installed) == 1
    assert installed[0].endswith("-- build-essential")
    assert any("build-essential" in line for line in said)


def plant(machine: Path, change: Callable[[Path], None], run: Run) -> Path:
    """Change a kept .deb, then install it on the next machine."""
    run(packages(machine).ensure(("curl",), print))
    (kept,) = (machine / "debs").glob("*/*.deb")
    lists(machine, kept)
    (machine / "state" / "curl").unlink()
    change(kept)
    run(packages(machine).ensure(("curl",), print))
    return kept


def other_content(kept: Path) -> None:
    kept.write_text("Downloaded\n")


def other_size(kept: Path) -> None:
    kept.write_text("cut")


def a_link(kept: Path) -> None:
    """A link, even one to the right file."""
    kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to(kept.with_name("elsewhere"))


def a_pipe(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept)


@pytest.mark.parametrize("change", [other_content, other_size, a_link, a_pipe])
def test_a_deb_that_the_lists_do_not_name_is_deleted(
    change: Callable[[Path], None], machine: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    kept = plant(machine, change, run)
    assert not (machine / "state" / ".found").exists(), "apt was given it"
    assert (
        "is deleted: it differs from the file that the system's package lists name" in caplog.text
    )
    assert kept.is_file()
    assert not kept.is_symlink()
    assert kept.read_text() == "downloaded\n", "what was downloaded instead is kept"


def test_a_link_in_place_of_the_kept_files_is_not_followed(
    machine: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = machine / "elsewhere"
    elsewhere.mkdir()
    (machine / "debs").symlink_to(elsewhere)
    caplog.set_level("INFO")
    run(packages(machine).ensure(("curl",), print))
    assert list(elsewhere.iterdir()) == []
    assert "system packages are not kept" in caplog.text


def test_unchecked_files_are_removed_from_apts_archives(machine: Path, run: Run) -> None:
    """apt would use files left by a killed install without a check."""
    (machine / "archives").mkdir()
    (machine / "archives" / "curl_1.0_all.deb").write_text("anybody's")
    run(packages(machine).ensure(("curl",), print))
    assert not (machine / "state" / ".found").exists()


def test_only_files_with_a_strong_hash_are_listed() -> None:
    words = (
        f"'http://x/a_1%3a2_all.deb' a_1%3a2_all.deb 12 SHA256:{'0' * 64}\n"
        f"'http://x/b.deb' b.deb 12 MD5Sum:{'0' * 32}\n"
        "'http://x/c.deb' c.deb 12 \n"
        f"'http://x/d.deb' ../d.deb 12 SHA256:{'0' * 64}\n"
        f"'http://x/e.deb' .e.deb 12 SHA256:{'0' * 64}\n"
        "W: something else\n"
    )
    (deb,) = kept_debs.listed_debs(words)
    assert deb == kept_debs.ListedDeb(name="a_1%3a2_all.deb", size=12, sha256="0" * 64)


_WRAPPERS = {
    "apt-get": "/usr/bin/apt-get -o Dir::State={0}/lists -o Dir::State::status={0}/root/var/lib/dpkg/status"
    " -o Dir::Etc::sourcelist={0}/sources.list -o Dir::Etc::sourceparts=- -o Dir::Cache::pkgcache="
    " -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Dir::Bin::dpkg={0}/bin/dpkg",
    "dpkg": "/usr/bin/dpkg --root={0}/root --force-not-root",
    "dpkg-query": "/usr/bin/dpkg-query --admindir={0}/root/var/lib/dpkg",
}
_CONTROL = """Package: planted
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: a test
"""


def _deb(folder: Path, target: Path, content: str) -> None:
    tree = folder / content
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(_CONTROL)
    (tree / "content").write_text(content)
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, target], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real apt and dpkg, on a system of the test's own, with a repository of one package."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs {' and '.join(missing) or 'root'}")
    for name in (
        "bin",
        "lists/lists/partial",
        "root/var/lib/dpkg/info",
        "root/var/lib/dpkg/updates",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/var/lib/dpkg/status").touch()
    for name, text in _WRAPPERS.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {text.format(tmp_path)} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    deb = tmp_path / "repository" / "planted_1.0_all.deb"
    deb.parent.mkdir()
    _deb(tmp_path / "good", deb, "good")
    digest, size = hashlib.sha256(deb.read_bytes()).hexdigest(), deb.stat().st_size
    (deb.parent / "Packages").write_text(
        f"{_CONTROL}Filename: ./{deb.name}\nSize: {size}\nSHA256: {digest}\n\n"
    )
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{deb.parent} ./\n")
    # dpkg needs programs in directories that not every PATH has.
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin")
    monkeypatch.setattr(system_packages, "_ARCHIVES", tmp_path / "archives")
    monkeypatch.setattr(shutil, "which", _only(tmp_path / "bin"))
    return tmp_path


def test_a_planted_deb_is_not_installed_by_the_real_apt(
    repository: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    installed = repository / "root" / "content"

    def ensure() -> None:
        run(packages(repository).ensure(("planted",), print))

    ensure()
    assert installed.read_text() == "good"
    (kept,) = (repository / "debs").glob("*/*.deb")

    # The next machine uses the kept file; the repository no longer has it.
    offered = repository / "repository" / kept.name
    subprocess.run([repository / "bin" / "dpkg", "--purge", "planted"], check=True)
    offered.rename(offered.with_name("away"))
    ensure()
    assert installed.read_text() == "good"

    # A planted file of the same name and size is not used.
    subprocess.run([repository / "bin" / "dpkg", "--purge", "planted"], check=True)
    offered.with_name("away").rename(offered)
    size = kept.stat().st_size
    _deb(repository / "bad", kept, "evil")
    assert kept.stat().st_size == size
    ensure()
    assert installed.read_text() == "good"
    assert "is deleted" in caplog.text
    assert kept.read_bytes() == offered.read_bytes()


#: A package to install on this machine and to remove again, such as `hello`.
_REAL = os.environ.get("FLASHPOOL_TEST_APT", "")


@pytest.mark.skipif(
    not _REAL, reason="installs on this machine: name a package in FLASHPOOL_TEST_APT"
)
@pytest.mark.timeout(300)
def test_two_concurrent_requests_install_a_real_package(run: Run, tmp_path: Path) -> None:
    def installed() -> bool:
        argv = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", _REAL]
        return subprocess.run(argv, capture_output=True, text=True).stdout == "installed"

    assert not installed(), "this test would remove what somebody wants"
    said: list[str] = []

    async def main() -> None:
        pools = [SystemPackages(debs=tmp_path / "debs", limit_s=240) for _ in range(2)]
        await asyncio.gather(*[pool.ensure((_REAL,), said.append) for pool in pools])
        with pytest.raises(SystemPackagesFailed, match="no-such-package-at-all"):
            await pools[0].ensure(("no-such-package-at-all",), said.append)

    try:
        run(main())
        assert installed()
        assert list((tmp_path / "debs").glob(f"*/{_REAL}_*.deb"))
        assert any(line.startswith("Installing system packages") for line in said)
    finally:
        subprocess.run(["apt-get", "purge", "-qq", "-y", _REAL], capture_output=True, check=True)
