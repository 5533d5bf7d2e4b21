#!/usr/bin/env bash
# find_python.sh [NAME..]   print the interpreter to build with: $PYTHON if set, else the first
#                           of the names given, those on PATH and those of version managers
#                           that runs, is 3.10 or later, and can make a virtualenv.
# VERSION=3.12 find_python.sh   the same, for that version only; fails silently.
# Every candidate is run, because a version manager's shim exists without its Python. For the
# interpreter of a virtualenv, its base is printed, which outlives the virtualenv.
set -u

probe='import os, sys
wanted = sys.argv[1]
if sys.version_info < (3, 10): sys.exit(3)
if wanted and wanted != "%d.%d" % sys.version_info[:2]: sys.exit(5)
try: import ensurepip, venv
except ImportError: sys.exit(4)
found = getattr(sys, "_base_executable", None) or sys.executable
# Before 3.11, a virtualenv calls itself its base.
base = os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
if found.startswith(os.path.join(sys.prefix, "")) and sys.prefix != sys.base_prefix and os.path.exists(base):
    found = base
print(found)'

too_old='' no_venv=''
try() {
  local found status
  found=$("$1" -I -c "$probe" "${VERSION:-}" 2>/dev/null); status=$?
  case $status in
    0) printf '%s\n' "$found"; exit 0 ;;
    3) too_old+=" $1" ;;
    4) no_venv+=" $1" ;;
  esac
}

if [ -n "${PYTHON:-}" ] && [ -z "${VERSION:-}" ]; then
  try "$PYTHON"
else
  for name in "$@" $(type -aP python3 "python${VERSION:-3.13}" python3.1{3,2,1,0,4} python); do
    try "$name"
  done
  for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.*/bin/python \
      "${HOME:-}"/.local/share/uv/python/cpython-3.*/bin/python3 /opt/python*/bin/python3; do
    [ -x "$path" ] && try "$path"
  done
fi

[ -z "${VERSION:-}" ] || exit 1
{
  echo "No usable Python${PYTHON:+ at PYTHON=$PYTHON}: flashpool needs 3.10 or later, with venv and ensurepip."
  [ -z "$no_venv" ] || echo "Without venv or ensurepip:$no_venv (on Debian and Ubuntu: apt-get install python3-venv)."
  [ -z "$too_old" ] || echo "Too old:$too_old."
  echo "Another one: make PYTHON=/path/to/python3 ..."
} >&2
exit 1
