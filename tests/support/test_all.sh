#!/usr/bin/env bash
# Runs all tests on every supported interpreter that is installed, each in a virtualenv of its own
# (.venv-3.x); the arguments go to pytest. Ends with a row for each interpreter, and fails if one of
# them failed. The output of each is kept in build/test-all-3.x.log.
# The hundred packages of the differential tests run on the default interpreter only: they take
# most of an hour, and not every package has wheels for every Python.
set -uo pipefail

# Property tests use new random examples each time.
export TEST_AT_RANDOM=1

default=$(bash tests/support/find_python.sh)
rows=() failed=0
mkdir -p build
for version in 3.10 3.11 3.12 3.13 3.14; do
  python=$(VERSION=$version bash tests/support/find_python.sh) || continue
  echo "== Python $version: $python"
  kinds='not gpu' without=''
  export FUZZ_S=600
  if [ "$(readlink -f "$python")" != "$(readlink -f "$default")" ]; then
    kinds='not gpu and not (differential and slow)'
    FUZZ_S=60
    without=', without the packages of tests/differential'
    echo "== without the packages of tests/differential, which are tried with $default only"
  fi
  log=build/test-all-$version.log
  if bash tests/support/test_on.sh "$python" ".venv-$version" -m "$kinds" "$@" 2>&1 | tee "$log"
  then verdict=passed; else verdict=FAILED failed=1; fi
  # The last line is pytest's summary, or the error that kept pytest from running.
  rows+=("$(printf '%-5s %s%s: %s' "$version" "$verdict" "$without" "$(tail -n 1 "$log" | tr -d '=')")")
done

[ ${#rows[@]} -gt 0 ] || { echo "no supported Python found" >&2; exit 1; }
echo "== On each Python that is installed:"
printf '   %s\n' "${rows[@]}"
exit $failed
