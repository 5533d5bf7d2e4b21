"""Console scripts of the base's packages, in an environment layered on the base."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from flashpool.envs.building.base_commands import add_base_commands
from flashpool.envs.resolving import probe


def test_base_commands_run_with_the_interpreter_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(os.path.realpath(sys.executable))
    (folder / "own").write_text("as it was")
    commands = {
        "tool": "tool:main",
        "method": "tool : Tool.main",
        "own": "tool:main",
        "pip3.11": "pip:main",
        "../out": "tool:main",
        "bad": "tool",
    }
    add_base_commands(folder, commands)
    assert sorted(os.listdir(folder)) == ["method", "own", "python", "tool"]
    assert (folder / "own").read_text() == "as it was"
    (tmp_path / "tool.py").write_text(
        "import sys\ndef main(): print(sys.executable, sys.argv[1:]); return 3\n"
        "class Tool:\n    main = staticmethod(main)\n"
    )
    moved = tmp_path / "moved"
    folder.rename(moved)
    for name in ("tool", "method"):
        done = subprocess.run(
            [moved / name, "a b"],
            env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == (f"{moved}/python ['a b']\n", 3), done.stderr


def test_the_probe_lists_console_scripts() -> None:

    module, _, function = probe.commands()["pytest"].partition(":")
    assert hasattr(importlib.import_module(module), function)
