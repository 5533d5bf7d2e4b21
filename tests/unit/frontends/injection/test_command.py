"""The start command: its parts, and which arguments are refused."""

import shlex

import pytest

from flashpool.frontends.injection import InjectionError, build_injection_cmd

SHA = "0123456789abcdef" * 4
URL = "https://x.example/flashpool-worker.tar.gz"


def command(**given):
    return shlex.split(build_injection_cmd(**{"environ": {}, "version": "1.0", **given}))


def test_arguments_are_not_part_of_the_script():
    argv = command(url=URL, sha256=SHA)
    assert argv[:2] == ["sh", "-c"]
    assert argv[3:] == ["flashpool-inject", URL, SHA, "1.0"]
    assert SHA not in argv[2]


def test_the_script_loses_its_comments_and_keeps_pythons_indentation():
    script = command(url=URL, sha256=SHA)[2]
    lines = script.splitlines()
    assert [line for line in lines if line.lstrip().startswith("#")] == []
    assert "    with urllib.request.urlopen(sys.argv[1], timeout=30) as source, " in script
    assert len(script) < 8000


def test_variables_replace_missing_arguments():
    environ = {
        "FLASH_WORKER_TARBALL_URL": "https://x.example/{version}/py{python}.tar.gz",
        "FLASH_WORKER_TARBALL_SHA256": SHA.upper(),
        "FLASH_WORKER_VERSION": "2.3.4",
    }
    argv = command(environ=environ, version=None, python="3.12")
    assert argv[4:] == ["https://x.example/2.3.4/py3.12.tar.gz", SHA, "2.3.4"]
    assert command(environ=environ, url=URL, version="9")[4:] == [URL, SHA, "9"]


def test_a_file_needs_no_hash():
    assert command(url="file:///srv/worker.tar.gz")[4:6] == ["file:///srv/worker.tar.gz", ""]


def test_plain_http_needs_a_setting_that_the_command_passes_on():
    url = "http://10.0.0.1/worker.tar.gz"
    with pytest.raises(InjectionError, match="FLASH_WORKER_ALLOW_HTTP=1"):
        command(url=url, sha256=SHA)
    argv = command(url=url, sha256=SHA, environ={"FLASH_WORKER_ALLOW_HTTP": "1"})
    assert argv[:4] == ["env", "FLASH_WORKER_ALLOW_HTTP=1", "sh", "-c"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "FLASH_WORKER_TARBALL_URL"),
        ({"url": URL}, "FLASH_WORKER_TARBALL_SHA256"),
        ({"url": URL, "sha256": "abc"}, "is not a SHA-256"),
        ({"url": "ftp://x.example/w", "sha256": SHA}, "neither an https"),
        ({"url": "file://relative", "sha256": SHA}, "neither an https"),
        ({"url": "https://x.example/a b", "sha256": SHA}, "is not a valid address"),
        ({"url": URL, "sha256": SHA, "version": "1; reboot"}, "is not a version"),
        ({"url": "https://x.example/{python}", "sha256": SHA}, "--python"),
    ],
)
def test_invalid_arguments_are_refused(given, message):
    with pytest.raises(InjectionError, match=message):
        command(**given)
