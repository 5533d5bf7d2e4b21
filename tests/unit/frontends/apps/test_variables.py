"""Which of the server's environment variables an app gets."""

from pathlib import Path

import pytest

from flashpool.frontends.apps.variables import app_variables
from flashpool.frontends.settings.table import Settings

ENVIRON = {
    "PATH": "/bin",
    "OF_THE_USER": "declared",
    "RUNPOD_API_KEY": "key",
    "RUNPOD_AI_API_KEY": "platform",
    "RUNPOD_WEBHOOK_GET_JOB": "http://x",
    "RUNPOD_ENDPOINT_BASE_URL": "http://y",
    "FLASHPOOL_TOKEN": "token",
    "FLASH_APP": "demo",
    "FLASH_RESOURCE_NAME": "another",
}
NEVER = {"RUNPOD_AI_API_KEY", "RUNPOD_WEBHOOK_GET_JOB", "FLASHPOOL_TOKEN"}


def given(*, deployed: bool, manifest: Path | None = None, **more: str) -> dict[str, str]:
    environ = {**ENVIRON, **more}
    settings = Settings.from_environ(environ)
    return app_variables(environ, settings, "shop", deployed=deployed, manifest=manifest)


def test_a_deployed_app_gets_the_variables_its_user_declared() -> None:
    found = given(deployed=True)
    assert found["OF_THE_USER"] == "declared"
    assert found["RUNPOD_API_KEY"] == "key"
    assert found["RUNPOD_ENDPOINT_BASE_URL"] == "http://y"
    assert found["FLASH_RESOURCE_NAME"] == "shop"
    assert not NEVER & found.keys()


def test_served_by_hand_an_app_gets_those_of_calls_and_of_the_client() -> None:
    found = given(deployed=False)
    assert "OF_THE_USER" not in found
    assert (found["PATH"], found["FLASH_APP"], found["RUNPOD_API_KEY"]) == ("/bin", "demo", "key")
    assert not NEVER & found.keys()


def test_the_operators_choice_of_variables_takes_precedence() -> None:
    found = given(deployed=True, FLASHPOOL_PASS_ENV="ANOTHER", ANOTHER="x")
    assert found["ANOTHER"] == "x"
    assert "OF_THE_USER" not in found
    assert found["FLASH_APP"] == "demo"


@pytest.mark.parametrize("name", ["RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID"])
def test_an_endpoint_id_shows_the_client_that_it_is_deployed(name: str) -> None:
    assert given(deployed=True)["RUNPOD_ENDPOINT_ID"] == "local"
    found = given(deployed=True, **{name: "there"})
    assert found[name] == "there"
    assert found.get("RUNPOD_ENDPOINT_ID") != "local"


def test_the_path_of_the_manifest_with_addresses_is_passed() -> None:
    assert "FLASH_MANIFEST_PATH" not in given(deployed=True)
    found = given(deployed=True, manifest=Path("/a/m.json"), FLASH_MANIFEST_PATH="/b")
    assert found["FLASH_MANIFEST_PATH"] == "/a/m.json"
