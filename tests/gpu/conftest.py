"""A server on a machine with a GPU, and a Python with torch.

``FLASHPOOL_TEST_TORCH_PYTHON`` names that Python; without it, the tests' own is tried.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest
from e2e.server import Server, serving

from flashpool.pool.gpus.nvml import library_is_there

PYTHON = os.environ.get("FLASHPOOL_TEST_TORCH_PYTHON", sys.executable)
Serve = Callable[..., AbstractContextManager[Server]]


@cache
def why_not() -> str:
    """Why these tests cannot run here; empty when they can."""
    if not library_is_there():
        return "there is no NVIDIA driver here"
    asked = [PYTHON, "-c", "import torch; assert torch.cuda.is_available()"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    return f"{PYTHON} has no torch that sees a GPU: {done.stderr[-300:]}" if done.returncode else ""


@pytest.fixture
def pod(tmp_path: Path) -> Serve:
    """A server whose calls can import torch."""
    if reason := why_not():
        pytest.skip(reason)

    def serve(**variables: str) -> AbstractContextManager[Server]:
        return serving(tmp_path, FLASHPOOL_BASE_PYTHON=PYTHON, **variables)

    return serve
