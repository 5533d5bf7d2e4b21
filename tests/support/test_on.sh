#!/usr/bin/env bash
# test_on.sh PYTHON VENV [ARGUMENT..]   run tests on this interpreter, in a virtualenv of its own:
#                                       VENV, which is created or updated first. The arguments
#                                       go to pytest.
# Do not run this while tests run in another virtualenv: each install recreates the links in build/,
# which all virtualenvs of this checkout use.
set -euo pipefail
python=$1 venv=$2; shift 2

UV_PROJECT_ENVIRONMENT=$venv .venv-uv/bin/uv sync -q --frozen --python "$python" \
  --reinstall-package flashpool
# Long fuzzing uses atheris if this interpreter has a wheel of it, else hypothesis.
[ -z "${TEST_AT_RANDOM:-}" ] || UV_PROJECT_ENVIRONMENT=$venv .venv-uv/bin/uv sync -q --frozen --inexact \
  --no-install-project --python "$python" --group fuzz || echo "no atheris for $python" >&2
"$venv/bin/python" tests/support/client.py
exec "$venv/bin/pytest" "$@"
