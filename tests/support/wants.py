"""Programs that tests need: tests that lack one are skipped, and the end of a run says which.

    program("cc", "gcc")  --skips-->  "needs gcc: ..."  --reports-->  pytest_terminal_summary
                                              --prints-->  "skipped, because missing: gcc (12 tests)"

The reason of a skip is text that is read again at the end, because text is what a report
keeps on its way from the process that runs a test to the one that prints.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

Report = pytest.TestReport | pytest.CollectReport

#: Debian's packages of programs whose package has another name.
_PACKAGES: Final = {
    "cc": "gcc",
    "dpkg-query": "dpkg",
    "nginx": "nginx-light",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "umount": "mount",
}
_REASON: Final = re.compile(r"(?:Skipped: )?needs ([^:]+): ")


def missing(what: str, why: str) -> BaseException:
    """What a test raises to be skipped, or a file of tests, because it needs ``what``."""
    return pytest.skip.Exception(_reason(what, why), allow_module_level=True)


def program(*names: str) -> str:
    """The path of the first of these programs that is installed; skip the test if none is."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise missing(_package(names), _why(names))


def c_compiler() -> str:
    """The path of the C compiler, which tests make libraries with."""
    return program("cc", "gcc", "clang")


def needs_program(*names: str) -> pytest.MarkDecorator:
    """Mark a test that is skipped where none of these programs is installed."""
    without = not any(map(shutil.which, names))
    return pytest.mark.skipif(without, reason=_reason(_package(names), _why(names)))


# The outermost hook, so that the summary comes after the list of single skips.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """A pytest hook: a conftest.py that imports it gets the summary."""
    yield
    counts: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("skipped"):
        if what := _missing(report):
            kind = "file" if isinstance(report, pytest.CollectReport) else "test"
            counts.setdefault(what, Counter())[kind] += 1
    if counts:
        listed = ", ".join(f"{what} ({_cost(counts[what])})" for what in sorted(counts))
        terminalreporter.write_line(f"skipped, because missing: {listed}")
        terminalreporter.write_line("(Programs are named like their packages in Debian.)")


def _missing(report: Report) -> str:
    """Return what a skipped test lacks; empty if it was skipped for another reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    found = _REASON.match(reason)
    return found[1] if found else ""


def _cost(count: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}{'s' * (number > 1)}" for kind, number in count.items())


def _package(names: tuple[str, ...]) -> str:
    return _PACKAGES.get(names[0], names[0])


def _why(names: tuple[str, ...]) -> str:
    return f"{' or '.join(names)} is not on PATH"


def _reason(what: str, why: str) -> str:
    return f"needs {what}: {why}"
