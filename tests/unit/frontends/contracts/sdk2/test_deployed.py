"""What an artifact of SDK 2.0 declares for a resource."""

import json

import pytest

from flashpool.frontends.apps.errors import ResourceRefused
from flashpool.frontends.contracts.sdk2.deployed import SdkContract


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "env" / "alpha-1.0.dist-info").mkdir(parents=True)
    resources = [
        {"kind": "queue", "name": "plain", "module": "jobs"},
        {"kind": "queue", "name": "heavy", "module": "jobs", "systemDependencies": ["ffmpeg"]},
        {"kind": "task", "name": "once", "module": "jobs"},
    ]
    told = {"version": 1, "resources": resources, "excludedPackages": ["torch"]}
    (tmp_path / "runpod_manifest.json").write_text(json.dumps(told))
    return tmp_path


def environment(folder, resource):
    return SdkContract({}).deployed_app(folder, resource, ["beta"]).environment


def test_a_resource_gets_its_packages_and_constraints(folder):
    assert environment(folder, "heavy").system_packages == ("ffmpeg",)
    assert environment(folder, "plain").system_packages == ()
    assert environment(folder, "plain").requirements == ("torch", "beta")
    assert environment(folder, "plain").constraints == ("alpha==1.0",)


def test_a_resource_that_is_not_deployed_is_refused(folder):
    with pytest.raises(ResourceRefused, match="its client starts it itself"):
        environment(folder, "once")
    with pytest.raises(ResourceRefused, match="heavy, once, plain"):
        environment(folder, "other")
