#!/usr/bin/env bash
# Runs the checks of `make ci`, which every change has to pass.
#
#   lint, types, docs                the sources
#   test-newest                      on the packages that an installation without the lock gets
#   test-sdk                         SDK 2.0's newest client; `test` has the oldest one supported
#   unit, contract and process       on the system's own Python: Debian's is linked statically,
#                                    and runs a sitecustomize of its own
#   the same                         on one more minor version: each commit takes the next
#   test                             on the default interpreter, last, so that pytest's summary
#                                    closes the output
#
# If at most three of the thousands of tests of a row fail, the row runs these a second time,
# without other tests beside them. Such a test, or the code that it tests, has a race: a line that
# begins with UNSTEADY names the test. A test that fails twice fails the row. `make test` runs no
# test twice.
set -euo pipefail

readonly core="tests/unit tests/contract tests/process"
readonly last_failed=.pytest_cache/v/cache/lastfailed
default=$(<build/interpreter)
rows=()

# twice ARGUMENTS COMMAND..   run a make target of tests with these arguments for pytest; if few
#                             tests fail, run those again.
twice() {
  local arguments=$1 failed; shift
  rm -f "$last_failed"
  "$@" ARGS="$arguments" && return
  failed=$(python3 -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$last_failed")
  [ -n "$failed" ] && [ "$(wc -l <<<"$failed")" -le 3 ] || return 1
  failed="UNSTEADY: ${failed//$'\n'/$'\n'UNSTEADY: }"
  printf '%s\n' "$failed" "== these a second time, alone"
  "$@" JOBS=0 ARGS="$arguments --last-failed --last-failed-no-failures=none"
  rows+=("$failed")
}

row() {
  local name=$1 start=$SECONDS; shift
  echo "== $name"
  "$@"
  rows+=("$((SECONDS - start)) s: $name")
}

minor_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Print the path of the interpreter whose turn it is, or nothing if no other version is installed.
# The number of commits decides, so that a commit always runs on the same interpreter.
whose_turn() {
  local version python others=()
  for version in 3.10 3.11 3.12 3.13 3.14; do
    [[ " $* " != *" $version "* ]] || continue
    python=$(VERSION=$version bash tests/support/find_python.sh) && others+=("$python")
  done
  [ ${#others[@]} -gt 0 ] || return 0
  echo "${others[$(($(git rev-list --count HEAD 2>/dev/null || echo 0) % ${#others[@]}))]}"
}

row "lint, types and docs" make lint typecheck docs
row "process and contract tests, with the newest packages" twice "" make test-newest

row "tests of SDK 2.0, with its newest client" twice "" make test-sdk

tried=$(minor_of "$default")
if system=$(PYTHON=/usr/bin/python3 bash tests/support/find_python.sh 2>/dev/null) \
    && [ "$(readlink -f "$system")" != "$default" ]; then
  row "unit, contract and process tests on the system's Python $(minor_of "$system"): $system" \
    twice "$core" make test-on PYTHON="$system"
  tried+=" $(minor_of "$system")"
fi

# Unquoted: one argument for each version.
# shellcheck disable=SC2086
other=$(whose_turn $tried)
if [ -z "$other" ]; then
  echo "== no other minor version is installed"
else
  row "unit, contract and process tests on Python $(minor_of "$other"), whose turn it is: $other" \
    twice "$core" make test-on PYTHON="$other"
fi

printf '%s\n' "== passed so far:" "${rows[@]/#/   }"
echo "== all tests on Python $(minor_of "$default"): $default"
twice "" make test
