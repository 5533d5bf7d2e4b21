"""Which modules imports find with an app's directory first, each in a new interpreter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flashpool.pool import _child

CHILD = Path(_child.__file__).parent
BEGIN = """
import json, sys
package = type(sys)("_flashpool")
package.__path__ = [CHILD]
sys.modules["_flashpool"] = package
from _flashpool import app_directory
"""


def told(folder: Path, code: str) -> Any:
    """Run the code; return what it puts into `found`."""
    text = BEGIN.replace("CHILD", repr(str(CHILD)))
    program = f"{text}\ndirectory = {str(folder)!r}\n{code}\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_modules_of_the_app_shadow_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "read-me.py").write_text("")
    assert told(tmp_path, "found = sorted(app_directory.names_in(directory))") == [
        *("package", "queue")
    ]


def test_only_workers_run_code_of_the_app_not_zygotes(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('code of the app')")
    code = """
app_directory.put_first(directory)
import concurrent.futures.thread  # needs the standard `queue`
before = sys.path[0] == directory, hasattr(sys.modules["queue"], "SimpleQueue")
app_directory.reveal(directory)
try:
    import queue
except SystemExit as error:
    found = [before, str(error), sys.path.count(directory)]
"""
    assert told(tmp_path, code) == [[True, True], "code of the app", 1]


def test_a_package_imported_from_elsewhere_is_replaced_by_the_apps(tmp_path: Path) -> None:
    elsewhere, app = tmp_path / "elsewhere", tmp_path / "app"
    for folder, whose in ((elsewhere, "ours"), (app, "theirs")):
        (folder / "shared").mkdir(parents=True)
        (folder / "shared" / "__init__.py").write_text(f"whose = {whose!r}")
        (folder / "shared" / "part.py").write_text("")
    code = f"""
sys.path.insert(0, {str(elsewhere)!r})
import shared.part
app_directory.put_first(directory)
import shared as theirs
app_directory.reveal(directory)
import shared as again
found = [shared.whose, theirs.whose, theirs is again, "shared.part" in sys.modules]
"""
    assert told(app, code) == ["ours", "theirs", True, False]


def test_modules_that_the_interpreter_needs_to_start_stay(tmp_path: Path) -> None:
    for name in ("os", "sys", "abc", "encodings", "time"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(name)")
    code = """
import os
app_directory.put_first(directory)
app_directory.reveal(directory)
import os as again
found = os is again
"""
    assert told(tmp_path, code) is True
