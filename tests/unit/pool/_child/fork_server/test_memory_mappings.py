"""`memory_mappings`: libraries get fewer mappings, with the same content and no write access."""

import json
import subprocess
import sys
import textwrap

from support.lean import CHILD

PRELUDE = """
import json, os, sys
import binascii, _ctypes, ctypes, zlib
package = type(sys)("_flashpool")
package.__path__ = [{child!r}]
sys.modules["_flashpool"] = package
from _flashpool.fork_server import memory_mappings

def mapped():
    with open("/proc/self/maps") as maps:
        rows = [line.split(None, 5) for line in maps]
    return [(row[0], row[1], row[5].strip()) for row in rows if len(row) == 6 and row[5][0] == "/"]

def text():
    found = {{}}
    for ends, mode, path in mapped():
        start, end = (int(one, 16) for one in ends.split("-"))
        if "w" not in mode and "r" in mode and ".so" in path:
            found.setdefault(path, []).append(ctypes.string_at(start, end - start))
    return {{path: b"".join(parts) for path, parts in found.items()}}
"""


def lean(source):
    done = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE.format(child=str(CHILD)) + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_library_has_one_mapping_that_is_not_writable():
    before, after, done, same, works = lean("""
        before, content = mapped(), text()
        done = memory_mappings.merge_read_only()
        works = binascii.a2b_base64(b"YQ==") == b"a" and zlib.decompress(zlib.compress(b"b")) == b"b"
        print(json.dumps([before, mapped(), done, content == text(), works]))
    """)
    assert done is True
    assert same
    assert works
    # Modules of the standard library may be built in, as in Debian's Python; these are not.
    for library in ("libc.so", "_ctypes."):
        parts = [mode for _, mode, path in after if library in path]
        assert len([mode for _, mode, path in before if library in path]) - len(parts) == 2
        assert parts[0] == "r-xp"
        assert parts.count("r-xp") == 1
    assert {mode for _, mode, _ in after if "x" in mode} == {"r-xp"}
    written = [[ends for ends, mode, _ in rows if "w" in mode] for rows in (before, after)]
    assert written[0] == written[1]


def test_the_interpreters_mappings_stay_as_profilers_expect_them():
    before, after = lean("""
        def own():
            return [row for row in mapped()
                    if os.path.basename(row[2]).startswith(("python", "libpython"))]

        before = own()
        memory_mappings.merge_read_only()
        memory_mappings.merge_read_only()
        print(json.dumps([before, own()]))
    """)
    assert before
    assert before == after


def test_where_memory_cannot_become_executable_nothing_changes():
    before, after, done, works = lean("""
        before = mapped()
        memory_mappings._mprotect = lambda *_: -1
        done = memory_mappings.merge_read_only()
        works = zlib.decompress(zlib.compress(b"b")) == b"b"
        print(json.dumps([before, mapped(), done, works]))
    """)
    assert before == after
    assert done is False
    assert works


def test_where_mappings_cannot_be_read_nothing_changes():
    before, after, done = lean("""
        before = mapped()

        def refused(*_, **__):
            raise PermissionError(13, "hidden")

        memory_mappings.open = refused
        done = memory_mappings.merge_read_only()
        print(json.dumps([before, mapped(), done]))
    """)
    assert before == after
    assert done is False
