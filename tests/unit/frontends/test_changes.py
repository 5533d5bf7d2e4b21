"""What a request's source reveals about the changes its call makes."""

from __future__ import annotations

import json

from flashpool.frontends import schema
from flashpool.frontends.changes import SOURCES, Changes, Sources


def of(**fields: object) -> Changes:
    body = json.dumps({"function_name": "f", "function_code": "def f(): pass", **fields}).encode()
    return Sources().read(schema.decode(body).request, 1)


def test_a_plain_request_touches_nothing() -> None:
    assert of() == Changes()


def test_variables_of_the_request_count() -> None:
    assert of(env={"HF_HOME": "/x"}).touches == {"env:HF_HOME"}


def test_json_escapes_hide_no_change() -> None:
    code = 'import os\ndef f(): os.environ["A"] = "x"'
    raw = "".join(f"\\u{ord(letter):04x}" for letter in code)
    body = b'{"function_name": "f", "function_code": "%b"}' % raw.encode()
    assert Sources().read(schema.decode(body).request, 1).touches == {"env:A"}


def test_shipped_modules_count_by_name_and_by_source() -> None:
    found = of(modules={"helper.py": "import os\nos.chdir('/')", "pkg/part.py": "import numpy"})
    assert found.touches == {"package:helper", "package:pkg", "cwd"}
    assert found.imports == {"os", "numpy"}


def test_the_source_of_a_class_counts_too() -> None:
    body = json.dumps(
        {
            "execution_type": "class",
            "class_name": "C",
            "class_code": "import torch\nclass C:\n    def f(self): import os; os.environ['A'] = '1'",
        }
    ).encode()
    found = Sources().read(schema.decode(body).request, 1)
    assert found == Changes(frozenset(("env:A",)), frozenset(("torch", "os")))


def test_the_number_of_remembered_sources_is_bounded() -> None:
    sources = Sources()
    request = schema.decode(b'{"function_name": "f", "function_code": "x"}').request
    for key in range(SOURCES + 5):
        sources.read(request, key)
    assert len(sources.known) == SOURCES
