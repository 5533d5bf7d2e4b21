"""`make coverage`: run pytest, and tell which lines and branches of the product it ran.

    .venv-coverage, with a copy of the product
      pytest, servers, programs   coverage.py, by the .pth file that it brings
      zygotes and workers         coverage_boot.py, as the copy's boot.py
    -> build/coverage: the data of both, together; report.json; html

The arguments go to pytest, and its exit status is this program's. Times and memory are not what
they are without: a test that compares them may fail here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("pool", "envs", "frontends")
INSTALLED: Final = Path(sysconfig.get_path("purelib"), "flashpool")
OUT: Final = ROOT / "build" / "coverage"
ARCS: Final = OUT / "child.arcs"
CONFIG: Final = OUT / "coverage.ini"
#: Zygotes that inspect all their objects take about five times as long as usual.
PATIENCE: Final = 6
#: The number of modules to list.
WORST: Final = 25


def main(arguments: list[str]) -> int:
    import coverage  # which only .venv-coverage has

    subprocess.run(["rm", "-rf", str(OUT)], check=True)
    OUT.mkdir(parents=True)
    CONFIG.write_text(config())
    sources = places()
    put_boot(sources)
    environment = {
        **os.environ,
        "COVERAGE_PROCESS_START": str(CONFIG),
        "FLASHPOOL_TEST_PATIENCE": str(PATIENCE),
    }
    pytest = [str(Path(sys.executable).with_name("pytest")), f"--timeout={120 * PATIENCE}"]
    status = subprocess.run([*pytest, *arguments], cwd=ROOT, env=environment).returncode
    measured = coverage.Coverage(config_file=str(CONFIG))
    measured.combine()
    measured.get_data().add_arcs(
        {str(ROOT / path.relative_to(INSTALLED)): arcs for path, arcs in child_arcs(sources)}
    )
    measured.save()
    measured.json_report(outfile=str(OUT / "report.json"))
    measured.html_report(directory=str(OUT / "html"))
    tell(json.loads((OUT / "report.json").read_text())["files"])
    return status


def config() -> str:
    """The configuration of coverage.py, for every process that starts with it."""
    lines = ["[run]", "branch = true", "parallel = true", f"data_file = {OUT / 'data'}"]
    lines += [f"source = {INSTALLED}", "patch = _exit, fork"]
    # Tests compare what programs print.
    lines += ["disable_warnings = no-data-collected, module-not-measured, already-imported"]
    lines += ["[paths]", f"product =\n    {ROOT}\n    {INSTALLED}"]
    lines += ["[report]", "exclude_also =\n    raise AssertionError\n    class .*Protocol.*:"]
    return "\n".join(lines) + "\n"


# -- What the child's processes ran ------------------------------------------------------


def places() -> dict[Path, tuple[int, int]]:
    """Return for each module of the child the offset of its bytes and its number of lines."""
    begin, found = 0, {}
    for path in sorted((INSTALLED / "pool" / "_child").rglob("*.py")):
        lines = len(path.read_bytes().splitlines())
        found[path] = (begin, lines)
        begin += (2 * (lines + 1)) ** 2
    with ARCS.open("wb") as file:
        file.truncate(begin)
    return found


def put_boot(sources: dict[Path, tuple[int, int]]) -> None:
    boot = INSTALLED / "pool" / "_child" / "boot.py"
    # From the source tree: the copy may already have our replacement.
    boot.with_name("boot.py.product").write_bytes((ROOT / "pool/_child/boot.py").read_bytes())
    text = Path(__file__).with_name("coverage_boot.py").read_text()
    text = text.replace('ARCS = ""', f"ARCS = {str(ARCS)!r}")
    known = {str(path): place for path, place in sources.items()}
    # Replace the file instead of writing to it: installers hard-link it to their cache.
    boot.unlink()
    boot.write_text(text.replace("] = {}\n", f"] = {known!r}\n", 1))


def child_arcs(
    sources: dict[Path, tuple[int, int]],
) -> Iterator[tuple[Path, list[tuple[int, int]]]]:
    """The arcs of each module, as coverage.py has them: a function's outside is negative."""
    cells = ARCS.read_bytes()
    for path, (begin, lines) in sources.items():
        yield path, arcs(cells[begin : begin + (2 * (lines + 1)) ** 2], lines)


def arcs(cells: bytes, lines: int) -> list[tuple[int, int]]:
    """Return the arcs of the module with these bytes."""
    side = 2 * (lines + 1)

    def line(end: int) -> int:
        return end if end <= lines else lines + 1 - end

    return [(line(at // side), line(at % side)) for at, ran in enumerate(cells) if ran]


# -- The report --------------------------------------------------------------------------


@dataclass
class Tally:
    """Lines and branches: their numbers, and how many were run."""

    there: int = 0
    ran: int = 0
    missing: list[str] = field(default_factory=list)

    def add(self, summary: dict[str, Any]) -> None:
        self.there += summary["num_statements"] + summary["num_branches"]
        self.ran += summary["covered_lines"] + summary["covered_branches"]

    @property
    def percent(self) -> float:
        return 100 * self.ran / self.there if self.there else 100.0


def tell(files: dict[str, Any]) -> None:
    """Print a figure for each folder, and the modules of which least was run."""
    folders: dict[str, Tally] = defaultdict(Tally)
    modules: dict[str, Tally] = defaultdict(Tally)
    everything = Tally()
    for name, found in files.items():
        relative = Path(name) if not Path(name).is_absolute() else Path(name).relative_to(ROOT)
        folder = str(relative.parent)
        for tally in (everything, folders[folder], modules[str(relative)]):
            tally.add(found["summary"])
        modules[str(relative)].missing = ranges(found["missing_lines"])
    print(f"\nOf the lines and branches in {', '.join(PACKAGES)}, the tests ran:")
    for folder, tally in sorted(folders.items()):
        print(f"  {tally.percent:5.1f} %  {folder}")
    print(f"The {WORST} modules of which they ran least, and the lines that nothing ran:")
    worst = sorted(modules.items(), key=lambda item: item[1].percent)[:WORST]
    for name, tally in worst:
        lines = ", ".join(tally.missing)
        print(
            f"  {tally.percent:5.1f} %  {name}  {lines if len(lines) < 60 else lines[:57] + '...'}"
        )
    print(f"Every line is in {OUT.relative_to(ROOT)}/html/index.html.")
    print(f"In all: {everything.percent:.1f} %")


def ranges(lines: list[int]) -> list[str]:
    """`3-5` for 3, 4, 5."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][-1] + 1:
            found[-1].append(line)
        else:
            found.append([line])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
