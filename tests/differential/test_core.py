"""Programs that need no package index: patterns with the standard library, numpy and own modules.

Each has to do in every call what it does as a script of the same Python.
"""

from collections.abc import Callable, Iterator

import differential.patterns_arrays
import differential.patterns_code
import differential.patterns_imports
import differential.patterns_process
import differential.patterns_random
import differential.patterns_settings
import differential.patterns_world  # noqa: F401 - each registers programs
import pytest
from differential.programs import as_parameters, of_groups
from differential.world import Rows, base_with_habits, remove_large, server_variables
from e2e.server import serving

from support.cells import Row

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

PROGRAMS = of_groups(("base", "own"))


@pytest.fixture(scope="module")
def row_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Row]]:
    folder = tmp_path_factory.mktemp("core")
    variables = server_variables(folder)
    base = {"FLASHPOOL_BASE_PYTHON": str(base_with_habits(folder / "base"))}
    with serving(folder, **variables, **base) as server:
        yield Rows(request, server, folder, variables, {"base": (), "own": ()})
    remove_large(folder)


@pytest.mark.parametrize("name", as_parameters(PROGRAMS))
def test_calls_do_what_the_script_does(
    name: str,
    row_of: Callable[[str], Row],
    record_property: Callable[[str, object], None],
) -> None:
    row = row_of(name)
    record_property(*row.as_property())
    assert not row.wrong, row.wrong


@pytest.mark.parametrize("name", ["arrays_and_linear_algebra", "globals_of_a_module"])
def test_later_calls_find_their_modules_imported(name: str, row_of: Callable[[str], Row]) -> None:
    """Otherwise no test would compare scripts with calls that find modules preloaded."""
    assert {"many", "parallel", "instance"} <= set(row_of(name).preloaded)
