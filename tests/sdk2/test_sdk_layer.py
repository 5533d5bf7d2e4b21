"""The environment with the SDK that calls see: built at the start of a dev session."""

from importlib import metadata
from pathlib import Path

from e2e.endpoints import repack
from e2e.server import report, until
from e2e.world import World

from flashpool.pool.workers.ends.outcomes import runtime_packages

VERSION = "import runpod\n\ndef f(): return runpod.version"


def test_a_dev_session_does_not_wait_for_its_first_call(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.index.add("runpod", "2.0.5")
    for (
        name
    ) in runtime_packages():  # the server's runpod has another version, so its base is not used
        repack(metadata.distribution(name), world.index.folder)
    with world.server(RUNPOD_DEV_APP="shop") as server:
        (store,) = until(
            lambda: [one for one in server.stats()["stores"] if one["environments"] == 1]
        )
        assert store["builds"] == 1
        answer = server.execute(VERSION)
        assert answer["json_result"] == "2.0.5", report(answer)
        assert answer["receipt"]["environment_hit"]
        # The build ahead does not count as a call.
        assert server.stats()["calls"] == 1
