#!/usr/bin/env bash
# The whole suite on every supported interpreter that is installed, each in a virtualenv of
# its own (.venv-3.x); the arguments go to pytest. Fails when one of them failed.
# The hundred packages of the differential tests are tried on the default interpreter only:
# they take most of an hour, and not every package has wheels for every Python.
set -uo pipefail

# Properties are tried with other examples each time.
export FLASHPOOL_TEST_AT_RANDOM=1

default=$(bash tests/support/find_python.sh)
failed=() passed=()
for version in 3.10 3.11 3.12 3.13 3.14; do
  python=$(VERSION=$version bash tests/support/find_python.sh) || continue
  echo "== Python $version: $python"
  kinds='not gpu'
  if [ "$(readlink -f "$python")" != "$(readlink -f "$default")" ]; then
    kinds='not gpu and not (differential and slow)'
    echo "== without the packages of tests/differential, which are tried with $default only"
  fi
  if bash tests/support/test_on.sh "$python" ".venv-$version" -m "$kinds" "$@"
  then passed+=("$version"); else failed+=("$version"); fi
done

[ ${#passed[@]} -gt 0 ] || [ ${#failed[@]} -gt 0 ] || { echo "no supported Python found" >&2; exit 1; }
echo "== passed: ${passed[*]:-none}; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
