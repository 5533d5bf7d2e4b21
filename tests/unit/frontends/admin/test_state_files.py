import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flashpool.frontends.admin import state_files
from flashpool.frontends.admin.client import AdminClient, AdminUnreachable
from flashpool.frontends.settings.table import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environ({"FLASHPOOL_STATE_DIR": str(tmp_path / "state")})


def address(pid: int, started_at: float = 1.0) -> state_files.AdminAddress:
    return state_files.AdminAddress(
        pid=pid, url=f"http://127.0.0.1:{pid}", mode="live", started_at=started_at
    )


def test_the_token_is_created_once_and_readable_by_its_owner_only(settings: Settings) -> None:
    token, new = state_files.made_token(settings)
    assert new
    assert state_files.made_token(settings) == (token, False)
    assert state_files.kept_token(settings) == token
    path = state_files.state_folder(settings) / "admin" / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_token_that_others_can_read_is_replaced(settings: Settings) -> None:
    token, _ = state_files.made_token(settings)
    path = state_files.state_folder(settings) / "admin" / "token"
    path.chmod(0o644)
    assert state_files.kept_token(settings) is None
    other, new = state_files.made_token(settings)
    assert new
    assert other != token


def test_a_link_in_place_of_the_token_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    folder = state_files.state_folder(settings) / "admin"
    folder.mkdir(parents=True)
    planted = tmp_path / "planted"
    planted.write_text("known-to-a-stranger")
    planted.chmod(0o600)
    (folder / "token").symlink_to(planted)
    assert state_files.kept_token(settings) is None
    assert state_files.made_token(settings)[1]
    assert planted.read_text() == "known-to-a-stranger"


def test_addresses_of_dead_processes_are_removed(settings: Settings) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    state_files.announce(settings, address(gone.pid))
    state_files.announce(settings, address(os.getpid(), 2.0))
    assert [one.pid for one in state_files.addresses(settings)] == [os.getpid()]
    assert AdminClient.find(settings).url == f"http://127.0.0.1:{os.getpid()}"
    state_files.withdraw(settings, address(os.getpid()))
    assert state_files.addresses(settings) == []
    folder = state_files.state_folder(settings) / "admin"
    assert list(folder.iterdir()) == []


def test_several_servers_need_an_explicit_url(settings: Settings) -> None:
    state_files.announce(settings, address(os.getpid()))
    state_files.announce(settings, address(os.getppid()))
    with pytest.raises(AdminUnreachable, match="Several servers run here"):
        AdminClient.find(settings)
    assert AdminClient.find(settings, "http://10.0.0.1:8001/").url == "http://10.0.0.1:8001"


def test_without_a_server_the_settings_give_the_url(settings: Settings) -> None:
    client = AdminClient.find(settings)
    assert client.url == "http://127.0.0.1:8001"
    with pytest.raises(AdminUnreachable, match="No admin listener answers"):
        AdminClient("http://127.0.0.1:1", None).get("/stats")
    with pytest.raises(AdminUnreachable, match="not the URL"):
        AdminClient("127.0.0.1", None).get("/stats")


def test_malformed_address_files_are_ignored(settings: Settings) -> None:
    folder = state_files.state_folder(settings) / "admin"
    folder.mkdir(parents=True)
    for name, text in ("1.json", "{"), ("2.json", '{"pid": "x"}'), ("3.json", "[]"):
        (folder / name).write_text(text)
    (folder / "4.json").symlink_to("/etc/passwd")
    assert state_files.addresses(settings) == []
