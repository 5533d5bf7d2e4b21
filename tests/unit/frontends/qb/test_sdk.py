"""Who imports the platform's SDK."""

import subprocess
import sys


def test_the_load_balanced_server_never_imports_the_sdk() -> None:
    code = """import sys
from flashpool.frontends.cli import main
from flashpool.frontends.lb import app, hosted, server
from flashpool.frontends.qb import entry
sys.exit('runpod' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
