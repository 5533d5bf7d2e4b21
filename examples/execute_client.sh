#!/bin/sh
# The same with curl: sh examples/execute_client.sh http://127.0.0.1:8000
set -eu
url=${1:-http://127.0.0.1:8000}

curl -fsS "$url/execute" -d '{
  "function_name": "add",
  "function_code": "def add(a, b):\n    return a + b",
  "args": [2, 3],
  "timeout_s": 10,
  "serialization_format": "json"
}'
echo
