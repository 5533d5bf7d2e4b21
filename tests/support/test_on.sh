#!/usr/bin/env bash
# test_on.sh PYTHON VENV [ARGUMENT..]   run tests on this interpreter, in a virtualenv of its own:
#                                       VENV, which is made or brought up to date first. The
#                                       arguments go to pytest.
# Not while tests run in another virtualenv: each install makes the links in build/ anew, which
# all virtualenvs of this checkout read.
set -euo pipefail
python=$1 venv=$2; shift 2

UV_PROJECT_ENVIRONMENT=$venv .venv-uv/bin/uv sync -q --frozen --python "$python" \
  --reinstall-package flashpool
# Fuzzing for long takes atheris, if it can be had for this interpreter, and else hypothesis.
[ -z "${TEST_AT_RANDOM:-}" ] || UV_PROJECT_ENVIRONMENT=$venv .venv-uv/bin/uv sync -q --frozen --inexact \
  --no-install-project --python "$python" --group fuzz || echo "no atheris for $python" >&2
"$venv/bin/python" tests/support/client.py
exec "$venv/bin/pytest" "$@"
