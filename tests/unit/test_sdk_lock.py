"""`make test` uses the oldest SDK 2.0 client that calls may have."""

import re

from packaging.requirements import Requirement

from flashpool.frontends.settings.table import Settings
from support.client import ROOT


def test_the_lock_has_the_oldest_supported_sdk():
    (text,) = Settings.from_environ({}).calls_runpod
    (oldest,) = [one for one in Requirement(text).specifier if one.operator == ">="]
    lock = (ROOT / "tests" / "sdk2" / "client2" / "uv.lock").read_text("utf-8")
    assert re.findall(r'^name = "runpod"\nversion = "(.+)"$', lock, re.MULTILINE) == [
        oldest.version
    ]
