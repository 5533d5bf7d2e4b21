"""Index credentials move from uv's variables into its configuration."""

import importlib
import sys

import pytest

from flashpool.envs.index_credentials import configuration, withhold

KEPT = {"PATH": "/bin", "HTTPS_PROXY": "http://a:b@proxy", "UV_CACHE_DIR": "/c"}


@pytest.mark.parametrize(
    ("variables", "bare", "urls"),
    [
        ({}, {}, ()),
        (
            {"UV_DEFAULT_INDEX": "https://host/simple"},
            {"UV_DEFAULT_INDEX": "https://host/simple"},
            (),
        ),
        (
            {"UV_DEFAULT_INDEX": "https://me:secret@host/simple"},
            {"UV_DEFAULT_INDEX": "https://host/simple"},
            ("https://me:secret@host/simple",),
        ),
        (
            {"UV_INDEX": "one=https://tok@host:8/a  HTTP://me:p@ss@host/b", "UV_INDEX_URL": "/dir"},
            {"UV_INDEX": "one=https://host:8/a  HTTP://host/b", "UV_INDEX_URL": "/dir"},
            ("https://tok@host:8/a", "HTTP://me:p@ss@host/b"),
        ),
        (
            {"UV_FIND_LINKS": "/dir,https://me:x@host/l,file:///d@e", "UV_EXTRA_INDEX_URL": ""},
            {"UV_FIND_LINKS": "/dir,https://host/l,file:///d@e", "UV_EXTRA_INDEX_URL": ""},
            ("https://me:x@host/l",),
        ),
        (
            {
                "UV_INDEX": "my-own=https://host/a/",
                "UV_INDEX_MY_OWN_USERNAME": "me",
                "UV_INDEX_MY_OWN_PASSWORD": "p/@:",
            },
            {"UV_INDEX": "my-own=https://host/a/"},
            ("https://me:p%2F%40%3A@host/a/",),
        ),
        (
            {"UV_DEFAULT_INDEX": "https://host/a@b", "UV_INDEX": "https://host/?q=a@b"},
            {"UV_DEFAULT_INDEX": "https://host/a@b", "UV_INDEX": "https://host/?q=a@b"},
            (),
        ),
    ],
)
def test_credentials_are_taken_out_of_the_variables(
    variables: dict[str, str], bare: dict[str, str], urls: tuple[str, ...]
) -> None:
    withheld = withhold({**KEPT, **variables}, named=True)
    assert withheld.environment == {**KEPT, **bare}
    assert withheld.urls == urls


@pytest.mark.parametrize("named", [True, False])
def test_credentials_by_index_name_are_kept_only_where_asked_for(named: bool) -> None:
    """Such an index is in uv's configuration file, so its URL is unknown here."""
    variables = {"UV_INDEX_MINE_USERNAME": "me", "UV_INDEX_MINE_PASSWORD": "secret"}
    withheld = withhold({**KEPT, **variables, "UV_INDEX_STRATEGY": "first-index"}, named=named)
    assert withheld.environment == {
        **KEPT,
        "UV_INDEX_STRATEGY": "first-index",
        **(variables if named else {}),
    }


URLS = ('https://me:s"\\é@host/', "https://tok@host/b")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib, of Python 3.11")
@pytest.mark.parametrize(
    ("own", "indexes"),
    [
        ("", []),
        ('offline = true\n[pip]\nno-deps = true\n[[index]]\nurl = "https://x/"', ["https://x/"]),
        ('index = [{ url = "https://x/" }]\n[pip]\nno-deps = true\n', ["https://x/"]),
        ("index = []", []),
        ('index = [\n  { url = "https://x/" },\n]\n', ["https://x/"]),
    ],
)
def test_credentials_are_added_to_the_users_configuration(own: str, indexes: list[str]) -> None:
    tomllib = importlib.import_module("tomllib")
    before, after = tomllib.loads(own), tomllib.loads(configuration(own, URLS))
    added = [each for each in after.pop("index") if each.get("explicit")]
    assert [each["url"] for each in added] == list(URLS)
    assert len({each["name"] for each in added}) == len(URLS)
    found = tomllib.loads(configuration(own, URLS))["index"]
    assert [each["url"] for each in found if not each.get("explicit")] == indexes
    before.pop("index", None)
    assert after == before
