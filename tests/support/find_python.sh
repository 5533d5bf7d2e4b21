#!/usr/bin/env bash
# Print the interpreter to build with: $PYTHON if set, else the first of the arguments and
# the usual names that runs, is 3.10 or later, and can make a virtualenv.
# Every candidate is run, because a version manager's shim exists without its Python.
set -u

probe='import sys
if sys.version_info < (3, 10): sys.exit(3)
try: import ensurepip, venv
except ImportError: sys.exit(4)
print(getattr(sys, "_base_executable", None) or sys.executable)'

too_old= no_venv=
try() {
  local found status
  found=$("$1" -I -c "$probe" 2>/dev/null); status=$?
  case $status in
    0) printf '%s\n' "$found"; exit 0 ;;
    3) too_old+=" $1" ;;
    4) no_venv+=" $1" ;;
  esac
}

if [ -n "${PYTHON:-}" ]; then
  try "$PYTHON"
else
  for name in "$@" python3 python3.13 python3.12 python3.11 python3.10 python; do try "$name"; done
  for path in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python /usr/local/bin/python3.*; do
    [ -x "$path" ] && try "$path"
  done
fi

{
  echo "No usable Python${PYTHON:+ at PYTHON=$PYTHON}: flashpool needs 3.10 or later, with venv and ensurepip."
  [ -n "$no_venv" ] && echo "Without venv or ensurepip:$no_venv (on Debian and Ubuntu: apt-get install python3-venv)."
  [ -n "$too_old" ] && echo "Too old:$too_old."
  echo "Another one: make PYTHON=/path/to/python3 ..."
} >&2
exit 1
