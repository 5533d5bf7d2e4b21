#!/bin/sh
# Builds the CPU images without a Docker engine, and tests them in a chroot:
#
#   debootstrap --> base --buildah, chroot isolation--> common --> queue, balanced
#                                       queue, balanced --> chroot: /execute, tests/handlers
#
#   build_without_docker.sh [BASE]      BASE: a folder with an unpacked Debian that has python3 and
#                                       python3-venv
#
# Needs root, and Debian's debootstrap and buildah. Removes all its files at the end. WORK names a
# folder for them, about 4 GB. The base has Debian's Python, in place of python:X.Y-slim's;
# everything else follows docker/Dockerfile.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
work=$(mktemp -d "${WORK:-${TMPDIR:-/tmp}}/image.XXXXXX")
base=${1:-}
suite=bookworm
mirror=http://deb.debian.org/debian
server=
tree=

say() { printf '== %s\n' "$*"; }

for program in debootstrap buildah; do
    command -v "$program" >/dev/null || {
        echo "Debian's package $program is not installed." >&2
        exit 1
    }
done

build() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

clean() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || :; wait "$server" 2>/dev/null || :; fi
    if [ -n "$tree" ]; then umount "$tree/proc" 2>/dev/null || :; fi
    if [ -d "$work/storage" ]; then build rm --all >/dev/null 2>&1 || :; fi
    rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 143' HUP INT TERM

# The certificates of the host: some networks have an authority of their own.
trusted=/etc/ssl/certs

if [ -z "$base" ]; then
    say "a base: Debian $suite with its Python"
    base=$work/base
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$base" "$mirror" >"$work/debootstrap.log" ||
        { tail "$work/debootstrap.log" >&2; exit 1; }
fi
container=$(build from scratch)
build copy --quiet "$container" "$base" / >/dev/null
build commit --quiet --rm "$container" localhost/base >/dev/null

say "docker/Dockerfile: what both images share"
# vfs copies whole trees, so no intermediate layers are made.
image() {
    build build --isolation chroot --layers=false --quiet --volume "$trusted:$trusted:ro" \
        --file "$root/docker/Dockerfile" --ignorefile "$root/docker/Dockerfile.dockerignore" \
        --build-arg BASE_IMAGE=localhost/base --build-arg BASE_PYTHON=/usr/bin/python3 "$@" "$root"
}
image --target common --tag localhost/common
for target in queue balanced; do
    say "docker/Dockerfile: $target"
    image --target "$target" --tag "localhost/$target" --build-context common=container-image://localhost/common
done

# Execs a command in the tree of an image, with the image's variables. Call it in a subshell, whose
# pid is then the command's.
inside() {
    exec chroot "$tree" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        DEBIAN_FRONTEND=noninteractive FLASHPOOL_BASE_PYTHON=/usr/bin/python3 FLASHPOOL_LOCAL_DIR=/var/lib/flashpool \
        FLASHPOOL_ADMIN_PORT=0 UV_SYSTEM_CERTS=1 SSL_CERT_FILE="$trusted/ca-certificates.crt" "$@"
}

# No folder of the host is mounted in the tree, so that removing the tree removes nothing else.
enter() {
    container=$(build from "localhost/$1")
    tree=$(build mount "$container")
    mount -t proc proc "$tree/proc"
    mkdir -p "$tree/dev/shm" "$tree/tests"
    for device in null:3 zero:5 full:7 random:8 urandom:9; do
        [ -c "$tree/dev/${device%:*}" ] || mknod -m 666 "$tree/dev/${device%:*}" c 1 "${device#*:}"
    done
    [ -e "$tree/dev/fd" ] || ln -s /proc/self/fd "$tree/dev/fd"
    cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"
    # Copy only this file: the image's folder has links, which would lead to files of the host.
    cp --remove-destination "$trusted/ca-certificates.crt" "$tree$trusted/ca-certificates.crt"
    cp -r "$root/tests/handlers" "$tree/tests/handlers"
}

leave() {
    umount "$tree/proc"
    tree=
    build rm "$container" >/dev/null
}

enter queue
say "the queue image: tests/handlers through handler.py"
(inside /opt/flashpool/bin/python /tests/handlers/run.py queue --folder /flashpool --container)
leave

enter balanced
say "the load-balanced image: one call to /execute"
port=$(inside /usr/bin/python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
# The image's command, but on loopback.
inside tini -s -- sh -c "exec /opt/flashpool/bin/uvicorn --app-dir /flashpool lb_handler:app --host 127.0.0.1 --port $port" &
server=$!
# shellcheck disable=SC2016 # a Python program
(inside /usr/bin/python3 -c '
import json, sys, time, urllib.request
url = "http://127.0.0.1:" + sys.argv[1]
end = time.monotonic() + 60
while True:
    try:
        if urllib.request.urlopen(url + "/ping", timeout=5).status == 200:
            break
    except OSError:
        pass
    assert time.monotonic() < end, "the server is not ready after a minute"
    time.sleep(0.1)
call = {"function_name": "add", "function_code": "def add(a, b):\n    return a + b", "args": [40, 2], "serialization_format": "json"}
answer = json.load(urllib.request.urlopen(urllib.request.Request(url + "/execute", json.dumps(call).encode()), timeout=60))
assert answer["success"] and answer["json_result"] == 42, answer
print("40 + 2 =", answer["json_result"])
' "$port")
kill "$server"
wait "$server" || :
server=
say "the load-balanced image: tests/handlers through lb_handler:app"
(inside /opt/flashpool/bin/python /tests/handlers/run.py balanced --folder /flashpool --container)
leave
say "both images are right"
