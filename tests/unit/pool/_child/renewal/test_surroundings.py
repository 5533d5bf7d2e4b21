"""`Surroundings.are_as_they_were` is a cheaper `not changed()`: it never misses a change."""

import json
import platform
import subprocess
import sys
import textwrap

import pytest

from flashpool.pool._child.renewal import surroundings
from support.lean import CHILD

WATCH = """
import ctypes, json, locale, os, sys, warnings
package = type(sys)("_flashpool")
package.__path__ = [{child!r}]
sys.modules["_flashpool"] = package
from _flashpool.renewal.surroundings import Surroundings

os.environ.update(PLAIN="1", EMPTY="")
there = Surroundings({kinds!r}).again()
before = there.are_as_they_were(), there.changed()
exec({source!r})
print(json.dumps([before, there.are_as_they_were(), there.changed()]))
"""
ALL = ("argv", "cwd", "locale", "warnings")


def watched(source, kinds=ALL):
    done = subprocess.run(
        [sys.executable, "-I", "-c", WATCH.format(child=str(CHILD), kinds=kinds, source=source)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    before, same, changed = json.loads(done.stdout)
    assert before == [platform.libc_ver()[0] == "glibc", []]
    return same, changed


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("os.environ['PLAIN'] = '2'", "env:PLAIN"),
        ("os.environ['NEW'] = '2'", "env:NEW"),
        ("os.environ['EMPTY'] = 'x'", "env:EMPTY"),
        ("del os.environ['PLAIN']", "env:PLAIN"),
        ("os.environ.clear()", "env:PLAIN"),
        ("os.environ = {**os.environ}", "env:*"),
        ("for i in range(999): os.environ[f'N{i}'] = str(i)", "env:N998"),
        ("del os.environ['PLAIN']; os.environ['OTHER'] = '1'", "env:OTHER"),
        ("sys.path.insert(0, '/nowhere')", "path"),
        ("sys.path = sys.path[1:]", "path"),
        ("sys.path[:] = []", "path"),
        ("sys.argv = ['x']", "argv"),
        ("sys.argv.append('x')", "argv"),
        ("os.chdir('/')", "cwd"),
        ("warnings.simplefilter('error')", "warnings"),
        ("locale.setlocale(locale.LC_ALL, 'C.UTF-8')", "locale"),
        ("locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')", "locale"),
        (
            "c = ctypes.CDLL(None); c.setlocale(locale.LC_COLLATE, b'C.UTF-8')",
            "locale",
        ),
    ],
)
def test_changes_are_detected_by_both(source, changed):
    same, found = watched(source)
    assert not same
    assert changed in found


@pytest.mark.parametrize(
    "source",
    [
        "pass",
        "os.environ.get('PLAIN'), dict(os.environ), os.path.expandvars('$PLAIN')",
        "list(sys.path), sys.argv[0], os.getcwd()",
        "locale.setlocale(locale.LC_ALL), locale.getlocale()",
        "os.environ.pop('NONE', None)",
    ],
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc: others compare all")
def test_reading_is_not_a_change(source):
    assert watched(source) == (True, [])


def test_what_cannot_be_compared_counts_as_changed():
    source = textwrap.dedent("""
        class Odd:
            def __ne__(self, other):
                raise SystemExit
        sys.path = Odd()
        same = there.are_as_they_were()
        sys.path = there.path
        assert not same
    """)
    assert watched(source)[1] == []


def test_only_the_given_kinds_are_watched():
    source = "sys.argv = ['x']; os.chdir('/'); locale.setlocale(locale.LC_ALL, 'C.UTF-8')"
    same, changed = watched(source, kinds=())
    assert same == (platform.libc_ver()[0] == "glibc")
    assert changed == []


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (b"\0FOO_THREADS\0BAR\0", ["FOO_THREADS", "BAR"]),
        (b"\0FOO_THREADS_MAX\0BARK\0", []),
        (b"FOO_THREADSBARRUST_BACKTRACE", ["FOO_THREADS", "BAR"]),
        (b"RUST_BACKTRACE" + bytes(100) + b"some FOO_THREADS: not a number", ["FOO_THREADS"]),
        (b"FOO_THREADSBAR", []),
    ],
    ids=["C", "longer names in C", "Rust", "a message in Rust", "none of both"],
)
@pytest.mark.parametrize("part", [16, 1 << 20])
def test_names_of_variables_are_found_in_libraries_of_c_and_rust(
    tmp_path, monkeypatch, text, known, part
):
    library = tmp_path / "library.so"
    library.write_bytes(text)
    there = surroundings.Surroundings(())
    monkeypatch.setattr(surroundings, "_libraries", lambda: there.libraries | {str(library)})
    monkeypatch.setattr(surroundings, "_PART", part)
    assert there.known_to_libraries(["FOO_THREADS", "BAR", "ELSE"]) == known
