"""``python tests/bench/against.py COMMIT``: compare the speed of the working tree with a commit's.

    COMMIT (old) ---- git archive --- virtualenv --- server, pool ---.
                                                                      >-- bursts in turn
    working tree (new) -- copy ------ virtualenv --- server, pool ---'

See `checkouts`, `sides`, `against_rows` and `against_report`, in this order. Everything is in
one temporary folder, which goes at the end, at Ctrl-C and SIGTERM, too.

Exit status: 0 when all was measured, whatever came of it; 1 when a row could not be; 2 when
there was nothing to compare, as when the commit does not exist or does not start.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "tests")]

from bench import against_report, against_rows, checkouts  # noqa: E402 - found only now
from bench.against_report import Compared  # noqa: E402
from bench.checkouts import Unusable  # noqa: E402
from bench.figures import Failed, machine  # noqa: E402
from bench.sides import Side  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.status import Status  # noqa: E402

STOPS = (signal.SIGINT, signal.SIGTERM)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the working tree with a commit.")
    parser.add_argument("commit", metavar="COMMIT", help="any name that git has for one")
    parser.add_argument("--pairs", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument(
        "--only", action="append", choices=list(against_rows.ROWS), help="may be repeated"
    )
    parser.add_argument(
        "--target",
        type=float,
        default=0.98,
        metavar="RATIO",
        help="that the interval of the ratio has to reach; default 0.98",
    )
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="to install on both sides, beside the lock; may be repeated",
    )
    for side in ("old", "new"):
        parser.add_argument(
            f"--{side}-setting",
            action="append",
            default=[],
            type=setting,
            metavar="FLASHPOOL_X=VALUE",
            help=f"of the {side} side's server; may be repeated",
        )
    parser.add_argument("--json", type=Path, default=ROOT / "bench-results" / "against.json")
    given = parser.parse_args()
    if given.pairs < 1:
        parser.error("--pairs: at least 1")
    if not given.target > 0:
        parser.error("--target: more than 0")
    return given


def setting(text: str) -> tuple[str, str]:
    """Parse a variable and its value."""
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("FLASHPOOL_"):
        raise argparse.ArgumentTypeError(f"{text!r} is not FLASHPOOL_...=...")
    return name, value


def stop(number: int, _frame: object) -> None:
    """Exit with the status that a shell gives for the signal."""
    undisturbed()
    sys.exit(128 + number)


def undisturbed() -> None:
    """Ignore Ctrl-C during clean-up: another one would leave servers and files behind."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    given = arguments()
    for number in STOPS:
        signal.signal(number, stop)
    console = Console(width=None if sys.stdout.isatty() else 150)
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            try:
                rows, head = compare(given, console, stack)
            finally:
                undisturbed()
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    against_report.show(console, rows)
    against_report.keep(given.json, head, rows)
    console.print(f"{time.monotonic() - began:.0f} s, {given.pairs} pairs a row; {given.json}")
    return int(any(isinstance(row, Failed) for row in rows))


def compare(
    given: argparse.Namespace, console: Console, stack: contextlib.ExitStack
) -> tuple[list[Compared | Failed], dict[str, object]]:
    """All rows, and what the JSON says of the sides."""
    commit = checkouts.resolved(given.commit)
    facts = machine()
    if float(facts["load_before"]) > float(facts["cores"]) / 4:
        console.print(
            f"[yellow]The machine is busy (load {facts['load_before']}): intervals will be wide."
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashpool-against-")))
    status = stack.enter_context(console.status("copying both checkouts"))
    old = checkouts.of_commit(commit, folder / "old")
    new = checkouts.of_working_tree(folder / "new")
    for checkout in (old, new):
        console.print(f"{checkout.name}: {escape(checkout.label)}", highlight=False)
    for checkout in (old, new):
        status.update(f"installing {escape(checkout.label)}")
        checkouts.install(checkout, given.extra)
    differing = against_report.differing(old.packages(), new.packages())
    if differing:
        told = ", ".join(f"{name} {was} and {now}" for name, (was, now) in differing.items())
        console.print(f"[yellow]The sides' packages differ: {escape(told)}", highlight=False)
    wanted = {
        name: kind
        for name, kind in against_rows.ROWS.items()
        if not given.only or name in given.only
    }
    status.update("starting both servers")
    slots = len(os.sched_getaffinity(0))
    settings = {"old": dict(given.old_setting), "new": dict(given.new_setting)}
    sides = (Side(old, slots, stack, **settings["old"]), Side(new, slots, stack, **settings["new"]))
    rows = [measured(name, kind, sides, given, status) for name, kind in wanted.items()]
    return rows, {
        "machine": facts,
        "pairs": given.pairs,
        "target": given.target,
        "old": {"commit": commit, "label": old.label},
        "new": {"label": new.label},
        "settings": settings,
        "with": given.extra,
        "differing_packages": differing,
    }


def measured(
    name: str,
    kind: against_rows.Kind,
    sides: tuple[Side, Side],
    given: argparse.Namespace,
    status: Status,
) -> Compared | Failed:
    """Measure a row; an error in one row does not prevent the others."""
    try:
        old, new = against_rows.measure(kind, *sides, given.pairs, status.update)
    except Exception as error:
        words = "".join(side.last_words() for side in sides)
        return Failed(name=name, error=f"{type(error).__name__}: {error}"[:500] + words)
    return against_report.compared(name, kind, old, new, given.target)


if __name__ == "__main__":
    sys.exit(main())
