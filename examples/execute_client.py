"""Call functions, and a method of an instance, on a running server over HTTP.

    make run                                                      # in another terminal
    .venv/bin/python examples/execute_client.py http://127.0.0.1:8000

Needs nothing but the standard library. A server with FLASHPOOL_TOKEN wants a header
`Authorization: Bearer <token>` as well.
"""

import json
import sys
import urllib.request
from typing import Any

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"

ADD = """
def add(a, b):
    print("adding")
    return a + b
"""

COUNTER = """
class Counter:
    def __init__(self, n):
        self.n = n

    def inc(self):
        self.n += 1
        return self.n
"""


def execute(**fields: Any) -> dict[str, Any]:
    """Send one request; return the fields of the answer."""
    body = json.dumps({"serialization_format": "json", **fields}).encode()
    with urllib.request.urlopen(f"{URL}/execute", body) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


answer = execute(function_name="add", function_code=ADD, args=[2, 3])
print("result:", answer["json_result"], "printed:", answer["stdout"].strip())

# A call that fails is answered with status 200; `success` tells.
answer = execute(function_name="add", function_code=ADD, args=[2, "3"])
print("success:", answer["success"], "error:", answer["error"].splitlines()[0])

# Requests with one instance_id share an object, which stays in a process of its own.
for _ in range(2):
    answer = execute(
        execution_type="class",
        class_name="Counter",
        class_code=COUNTER,
        constructor_args=[10],
        method_name="inc",
        instance_id="example",
    )
    print("counter:", answer["json_result"])
