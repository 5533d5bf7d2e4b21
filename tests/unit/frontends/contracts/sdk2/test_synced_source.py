"""The source of a live API: which requests are accepted, and where the source is kept."""

import hashlib
import json

import pytest

from flashpool.frontends.contracts.sdk2.synced_source import SourceStore, read_sync
from flashpool.frontends.settings.table import Settings
from flashpool.pool.errors import InvalidRequest

SENT = {"source": "x = 1", "resource": "Counter", "dependencies": ["alpha"]}
ENDPOINT = {"RUNPOD_ENDPOINT_ID": "ep", "RUNPOD_DEV_APP": "shop", "RUNPOD_DEV_GENERATION": "1"}


def taken(**changes):
    return read_sync(json.dumps({**SENT, **changes}).encode())


def store(folder, *, key="", endpoint=ENDPOINT, machine="one"):
    (folder / "volume").mkdir(exist_ok=True)
    settings = Settings.from_environ(
        {
            "FLASHPOOL_LOCAL_DIR": str(folder / machine),
            "FLASHPOOL_VOLUME": str(folder / "volume"),
            **({"FLASHPOOL_VOLUME_KEY": key} if key else {}),
        }
    )
    return SourceStore(settings, endpoint)


def test_the_digest_is_the_one_the_client_computes():
    assert taken().digest == hashlib.sha256(b"x = 1").hexdigest()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b"[" * 100_000),
        *(b'{"source":"","resource":"a"}', b'{"source":"a","resource":""}'),
        *(b'{"source":"a\\u0000","resource":"a"}', b'{"source":"\\ud800","resource":"a"}'),
    ],
)
def test_a_malformed_sync_is_refused(body):
    with pytest.raises(InvalidRequest):
        read_sync(body)


def test_the_latest_source_is_found_again(tmp_path):
    first, second = taken(), taken(source="x = 2")
    store(tmp_path).keep(first)
    store(tmp_path).keep(second)
    assert store(tmp_path).find() == second


def test_a_source_belongs_to_one_generation_of_one_endpoint(tmp_path):
    store(tmp_path).keep(taken())
    assert store(tmp_path, endpoint={**ENDPOINT, "RUNPOD_DEV_GENERATION": "2"}).find() is None


def test_without_a_key_no_source_is_kept_on_the_volume(tmp_path):
    store(tmp_path).keep(taken())
    assert list((tmp_path / "volume").rglob("*.json")) == []
    assert store(tmp_path, machine="two").find() is None


def test_another_machine_with_the_key_finds_a_signed_source(tmp_path):
    kept = taken()
    store(tmp_path, key="secret").keep(kept)
    assert store(tmp_path, key="secret", machine="two").find() == kept
    assert store(tmp_path, key="other", machine="two").find() is None


def test_a_source_changed_on_the_volume_is_not_served(tmp_path):
    store(tmp_path, key="secret").keep(taken())
    (path,) = (tmp_path / "volume").rglob("*.json")
    path.write_bytes(path.read_bytes().replace(b"x = 1", b"x = 9"))
    assert store(tmp_path, key="secret", machine="two").find() is None
