#!/bin/sh
# Starts the injected server: creates its environment once, then execs `flashpool serve auto`.
#
#   this folder: release, wheels/, install_wheels.py   (the unpacked tarball)
#   env/         the server's own environment, created here from the wheels, without a network
#
# The server runs on a Python of the minor version that the wheels are for. The user's code runs on
# the image's own: FLASHPOOL_BASE_PYTHON, else the first `python` or `python3` of PATH that is new
# enough.
#
# Exit status: 6 no Python can run the server; 7 the environment cannot be created; else that of the
# server.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

say() { printf 'flashpool: %s\n' "$*" >&2; }

fail() {
    status=$1
    shift
    say "$@"
    exit "$status"
}

value_of() { sed -n "s/^$1=//p" "$here/release"; }

# Print "3.12 cpython x86_64 glibc", for example, or nothing if the program is not a Python.
kind_of() {
    "$1" -I -c '
import platform, sys
libc = platform.libc_ver()[0] or "another libc"
print("%d.%d" % sys.version_info[:2], sys.implementation.name, platform.machine(), libc)
' 2>/dev/null || :
}

# List the interpreters of this image, by their usual names and places.
interpreters() {
    for name in python python3 "python$minor"; do
        command -v "$name" 2>/dev/null || :
    done
    for folder in /usr/local/bin /usr/bin /opt/conda/bin /opt/venv/bin /venv/bin /workspace/venv/bin; do
        for name in python3 "python$minor"; do
            if [ -x "$folder/$name" ]; then printf '%s\n' "$folder/$name"; fi
        done
    done
}

find_server_python() {
    wanted="$minor cpython x86_64 glibc"
    seen=
    for candidate in $(interpreters); do
        kind=$(kind_of "$candidate")
        if [ "$kind" = "$wanted" ]; then
            printf '%s\n' "$candidate"
            return 0
        fi
        seen="$seen
  $candidate: ${kind:-it does not start}"
    done
    say "This tarball's wheels are for Python $minor on x86_64 with glibc, and the image has none of that kind." \
        "It has:${seen:-
  no Python in the usual places}"
    say "Use the tarball of the image's own version (flashpool inject print-command --python), or add Python $minor."
    return 1
}

# Print the first Python of PATH that calls can run on.
find_base_python() {
    for name in python python3; do
        path=$(command -v "$name" 2>/dev/null) || continue
        if "$path" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$path"
            return 0
        fi
    done
    printf '%s\n' "$(sed -n 's/^home = //p' "$here/env/pyvenv.cfg")/python$minor"
}

# Install only the wheels, without the image's indexes, configuration and caches.
make_environment() {
    sweep
    scratch=$(mktemp -d "$here/.env.$$.XXXXXX") || return 1
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 143' HUP INT TERM
    "$python" -I "$here/install_wheels.py" "$here/wheels" "$scratch/env" || return 1
    publish
    rm -rf "$scratch"
    trap - EXIT HUP INT TERM
}

# Remove folders that killed starts left. The pid of such a start is gone, or now this one's.
sweep() {
    for left in "$here"/.env.*; do
        [ -d "$left" ] || continue
        pid=${left##*/.env.} pid=${pid%%.*}
        if [ "$pid" = "$$" ] || ! kill -0 "$pid" 2>/dev/null; then rm -rf "$left"; fi
    done
}

# Two starts at once may both create the environment: the first `mv` counts. A second `mv` moves its
# folder into the existing one, from which it is removed here.
publish() {
    if [ ! -d "$here/env" ]; then mv "$scratch/env" "$here/env"; fi
    if [ -d "$here/env/env" ]; then rm -rf "$here/env/env"; fi
}

minor=$(value_of python)
version=$(value_of version)
if [ -z "$minor" ] || [ -z "$version" ]; then
    fail 7 "$here/release names no version: unpack the tarball again."
fi
if [ ! -x "$here/env/bin/python" ]; then
    # Only an environment without its interpreter gets here, never one just published.
    if [ -d "$here/env" ]; then rm -rf "$here/env"; fi
    python=$(find_server_python) || exit 6
    say "making the environment of version $version, of $python"
    make_environment || fail 7 "The server's environment cannot be made in $here; the reason is above." \
        "Is there room, and may $(id -un 2>/dev/null || id -u) write there?"
fi
if [ -z "${FLASHPOOL_BASE_PYTHON:-}" ]; then
    # Do not follow a virtualenv's links: its packages are what the image's users installed.
    FLASHPOOL_BASE_PYTHON=$(find_base_python)
    export FLASHPOOL_BASE_PYTHON
fi
# -I: PYTHONPATH and similar variables are for the user's code, not for the server.
exec "$here/env/bin/python" -I -c 'from flashpool.frontends.cli import main; main(prog_name="flashpool")' serve auto "$@"
