import json
from pathlib import Path
from typing import Any

import pytest

from flashpool.frontends.apps.contract import AnswerForm, DeployedApp, EntryKind
from flashpool.frontends.apps.errors import ManifestRefused, ResourceRefused
from flashpool.frontends.apps.generations import contract_of


class App:
    """An unpacked artifact with one resource, whose manifest fields a test chooses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "runpod_flash").mkdir()
        (folder / "runpod_flash" / "__init__.py").write_text('__version__ = "1.21.0"\n')
        self.fields: dict[str, Any] = {}
        self.top: dict[str, Any] = {"python_version": "3.12"}

    def handler(self, name: str, source: str = "handler = app = print\n") -> Path:
        path = self.folder / name
        path.write_text(source)
        return path

    def deployed(self, resource: str = "shop", **environ: str) -> DeployedApp:
        manifest = {"resources": {"shop": self.fields}, **self.top}
        (self.folder / "flash_manifest.json").write_text(json.dumps(manifest))
        return contract_of(self.folder, environ).deployed_app(self.folder, resource, ())


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def test_a_queue_resource(app: App) -> None:
    handler = app.handler("handler_shop.py")
    app.fields = {"max_concurrency": 4, "functions": [{"name": "f", "module": "m"}]}
    found = app.deployed()
    assert (found.source, found.resource, found.answer) == (app.folder, "shop", AnswerForm.JOB)
    assert found.entry.kind is EntryKind.HANDLER
    assert (found.entry.file, found.entry.attribute) == (handler, "handler")
    assert (found.entry.concurrency, found.entry.has_execute) == (4, False)
    assert (found.functions[0].name, found.functions[0].module) == ("f", "m")
    assert found.environment.python == "3.12"


def test_a_load_balanced_resource(app: App) -> None:
    handler = app.handler("handler_shop.py")
    app.fields = {"is_load_balanced": True, "target_python_version": "3.11"}
    app.top["routes"] = {"shop": {"GET /a": "f", "get /a": "g"}}
    found = app.deployed()
    assert (found.entry.kind, found.answer) == (EntryKind.ASGI, AnswerForm.HTTP)
    assert (found.entry.file, found.entry.attribute) == (handler, "app")
    assert found.entry.has_execute
    assert found.environment.python == "3.11"
    assert [str(route) for route in found.routes] == ["GET /a", "GET /a"]
    assert found.oddities == ("Route conflict detected: GET /a defined twice",)


def test_an_application_of_the_users_own(app: App) -> None:
    app.handler("handler_shop.py")
    (app.folder / "web").mkdir()
    main = app.handler("web/main.py")
    app.fields = {"is_load_balanced": True}
    found = app.deployed(FLASH_MAIN_FILE="web/main.py")
    assert (found.entry.file, found.entry.attribute) == (main, "app")
    assert not found.entry.has_execute
    named = app.deployed(FLASH_MAIN_FILE="web/main.py", FLASH_APP_VARIABLE="api")
    assert named.entry.attribute == "api"
    with pytest.raises(ResourceRefused, match="FLASH_APP_VARIABLE='a b' is not a name"):
        app.deployed(FLASH_MAIN_FILE="web/main.py", FLASH_APP_VARIABLE="a b")
    for wrong in ("../main.py", "/etc/hostname", "web/none.py", "web"):
        with pytest.raises(ResourceRefused, match=r"handlers there are: handler_shop\.py"):
            app.deployed(FLASH_MAIN_FILE=wrong)


def test_a_missing_handler_is_reported_with_those_that_exist(app: App) -> None:
    app.handler("handler_other.py")
    with pytest.raises(ResourceRefused, match=r"handler_shop\.py is not there") as caught:
        app.deployed()
    assert "the handlers there are: handler_other.py" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("def handler(job):\n    pass\n", True),
        ("async def handler(job): pass", True),
        ("from m import handler", True),
        ("if True:\n    handler = print\n", True),
        ("from m import *", True),
        ("globals()['handler'] = print", True),
        ("def handler(job)  # of another Python's grammar", True),
        ("", False),
        ("def f():\n    handler = 1\n", False),
        ("print(handler)", False),
        ("# handler\nhandlers = 1", False),
    ],
)
def test_a_file_without_a_handler_is_refused(app: App, source: str, has: bool) -> None:
    path = app.handler("handler_shop.py", source)
    if has:
        assert app.deployed().entry.file == path
        return
    with pytest.raises(ResourceRefused, match=r"has no 'handler'; the handlers there are: h"):
        app.deployed()


@pytest.mark.parametrize("name", ["../shop", "a/b", "/etc/x", "..", ""])
def test_a_resource_name_that_leads_out_of_the_app_is_refused(app: App, name: str) -> None:
    (app.folder / "handler_a").mkdir()
    app.handler("handler_a/b.py")
    app.top["resources"] = {name: {}}
    with pytest.raises(ResourceRefused, match=r"not a file of the app|is not there"):
        app.deployed(name)


def test_a_handler_that_links_out_of_the_app_is_refused(app: App) -> None:
    (app.folder / "handler_shop.py").symlink_to("/etc/hostname")
    with pytest.raises(ResourceRefused, match="not a file of the app"):
        app.deployed()


def test_a_resource_in_client_mode_is_refused(app: App) -> None:
    app.fields = {"client_mode": True}
    with pytest.raises(ResourceRefused, match="belongs to a client"):
        app.deployed()


def test_the_summary_lists_all_resources(app: App) -> None:
    app.handler("handler_good.py")
    app.top |= {
        "version": "1.0",
        "project_name": "p",
        "resources": {"good": {}, "gone": {}, "lb": {"is_load_balanced": True, "functions": [{}]}},
    }
    with pytest.raises(ResourceRefused):
        app.deployed()
    found = contract_of(app.folder, {}).summary(app.folder)
    assert (found.project, found.python) == ("p", "3.12")
    assert [each.kind for each in found.resources] == ["queue", "queue", "load-balanced"]
    assert found.resources[0].problem == ""
    assert "is not there" in found.resources[1].problem


def test_a_manifest_of_another_generation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runpod_manifest.json").write_text("{}")
    with pytest.raises(ManifestRefused, match="format of runpod 2"):
        contract_of(tmp_path, {}).summary(tmp_path)
