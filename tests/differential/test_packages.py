"""Programs with packages of the real index: slow, and they need the network.

Each environment is built once, by a server of the interpreter that runs the tests, and all
programs of a group run in it.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Final

import differential.packages_data
import differential.packages_learning
import differential.packages_pictures
import differential.packages_servers
import differential.packages_small
import differential.packages_special
import differential.packages_text
import differential.packages_web
import differential.patterns_imports
import differential.patterns_process
import differential.patterns_random
import differential.patterns_settings
import differential.patterns_world  # noqa: F401 - each registers programs
import pytest
from differential.programs import GROUPS, as_parameters, of_groups
from differential.world import HABITS, Rows, remove_large, server_variables
from e2e.server import serving

from support.cells import Row

#: Seconds for a group's first test, which builds the environment and runs all programs.
GROUP_LIMIT_S: Final = 1500
#: The disk space of an environment with torch and its GPU libraries.
TORCH_BYTES: Final = 10 * 2**30
#: The requirement for torch; another one may be a build for processors alone.
TORCH: Final = os.environ.get("FLASHPOOL_TEST_TORCH", "torch")

PROGRAMS: Final = of_groups(tuple(group for group in GROUPS if group != "base"))

pytestmark = [pytest.mark.slow, pytest.mark.shared_pool, pytest.mark.timeout(GROUP_LIMIT_S)]


def requirements() -> dict[str, tuple[str, ...]]:
    """The requirements of each group's programs."""
    return {
        **GROUPS,
        "own": (f"habits @ file://{HABITS}",),
        "torch": tuple(TORCH if name == "torch" else name for name in GROUPS["torch"]),
    }


@pytest.fixture(scope="module")
def row_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Row]]:
    folder = tmp_path_factory.mktemp("packages")
    variables = server_variables(folder)
    # One group after another; the processes of those before it only take memory.
    with serving(folder, **variables, FLASHPOOL_MAX_ENVIRONMENTS="1") as server:
        yield Rows(request, server, folder, variables, requirements())
    remove_large(folder)


@pytest.mark.parametrize("name", as_parameters(PROGRAMS))
def test_calls_do_what_the_script_does(
    name: str,
    row_of: Callable[[str], Row],
    record_property: Callable[[str, object], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if name.startswith("torch") and TORCH == "torch":
        free = shutil.disk_usage(tmp_path_factory.getbasetemp()).free
        if free < TORCH_BYTES:
            pytest.skip(f"torch takes 10 GiB of disk, and {free / 2**30:.1f} are free")
    row = row_of(name)
    record_property(*row.as_property())
    assert not row.wrong, row.wrong
