# Brings flashpool into a container of any image, and starts it:
#
#   sh -c "$(cat inject.sh)" flashpool-inject URL SHA256 VERSION [ARGUMENT of bootstrap.sh ...]
#
#   unpacked here already? ------------------------------------------------------------> bootstrap.sh
#   a tarball with that SHA-256: on the volume, in this container, or from the URL --unpack--^
#
# A tarball is first copied into a scratch folder, and only that copy is checked and unpacked: calls
# may change files on the volume at any time, even between the check and the use. A folder or file
# gets its final name by a rename, when it is complete. Names contain the SHA-256, so that several
# versions can coexist.
#
# Exit status: 2 refused, 3 no tarball could be fetched, 4 another SHA-256, 5 no room or not
# writable; after that bootstrap.sh's.
set -eu

url=$1 sha256=$2 version=$3
shift 3
name=flashpool-inject
limit_mb=100
scratch=

say() { printf '%s: %s\n' "$name" "$*" >&2; }

fail() {
    status=$1
    shift
    say "$@"
    exit "$status"
}

writable() { [ -d "$1" ] && [ -w "$1" ]; }

has() { command -v "$1" >/dev/null 2>&1; }

# Set $python to a Python of the image that can start, if there is one.
python_here() {
    for python in python3 python; do
        if has "$python" && "$python" -I -c 'import hashlib, sys; sys.exit(sys.version_info < (3,))' 2>/dev/null; then
            return 0
        fi
    done
    return 1
}

digest_of() {
    if has sha256sum; then
        sha256sum <"$1" | cut -c1-64
    elif has shasum; then
        shasum -a 256 <"$1" | cut -c1-64
    elif has openssl; then
        openssl dgst -sha256 -r <"$1" | cut -c1-64
    elif python_here; then
        "$python" -I -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <"$1"
    else
        return 1
    fi
}

# Copy a tarball to the scratch folder. The file is not trusted: it must be a regular file, and only
# the first $limit_mb MiB are copied.
take() {
    found=
    [ -f "$1" ] && [ -r "$1" ] || return 1
    dd if="$1" of="$scratch/tarball" bs=1048576 count="$limit_mb" 2>/dev/null || {
        say "$1 could not be copied to $scratch."
        return 1
    }
    found=$(digest_of "$scratch/tarball")
    if [ -n "$sha256" ] && [ "$found" != "$sha256" ]; then
        say "$1 is not used: its SHA-256 is $found, and should be $sha256."
        rm -f "$scratch/tarball"
        return 1
    fi
}

with_curl() {
    set -- --fail --silent --show-error --location --connect-timeout 20 --retry 2 \
        --speed-limit 1024 --speed-time 30 --output "$scratch/tarball"
    case $url in https:*) set -- "$@" --proto =https --proto-redir =https ;; esac
    curl "$@" "$url"
}

with_wget() { wget -q -T 30 -O "$scratch/tarball" "$url"; }

with_python() {
    "$python" -I -c 'import shutil, sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=30) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
except OSError as error:
    sys.exit(str(error))' "$url" "$scratch/tarball"
}

# Download with the tools of the image. If one fails, the next may know the certificates or proxies.
download() {
    tools=
    for tool in curl wget python; do
        case $tool in python) python_here || continue ;; *) has "$tool" || continue ;; esac
        tools="$tools $tool"
        rm -f "$scratch/tarball"
        if "with_$tool"; then
            found=$(digest_of "$scratch/tarball")
            [ "$found" = "$sha256" ] || fail 4 \
                "$url has the SHA-256 $found, and should have $sha256: it is not used."
            return 0
        fi
        say "$tool could not fetch $url"
    done
    [ -n "$tools" ] || fail 3 "There is no curl, wget or Python in this image, so $url cannot be fetched."
    fail 3 "$url could not be fetched with$tools. Is the network reachable, the address right, and room in $home?"
}

# Copy a file, and rename it when it is complete. Refuse a target that is a folder or a link to one:
# `mv` would move the file into that folder.
store() {
    if [ -d "$2" ] || ! mkdir -p "$(dirname "$2")" 2>/dev/null; then return 1; fi
    part="$2.$(uname -n).$$.part"
    if cp "$1" "$part" 2>/dev/null && mv -f "$part" "$2" 2>/dev/null; then return 0; fi
    rm -f "$part" 2>/dev/null
    return 1
}

# Remove partial files that killed starts left on the volume, once they are an hour old.
sweep_volume() {
    if has find; then find "$cache" -name '*.part' -type f -mmin +60 -exec rm -f {} + 2>/dev/null || :; fi
}

# Remove folders that killed starts left here. The pid of such a start is gone, or now this one's.
sweep_home() {
    for left in "$home"/.scratch.*; do
        [ -d "$left" ] || continue
        pid=${left##*/.scratch.} pid=${pid%%.*}
        if [ "$pid" = "$$" ] || ! kill -0 "$pid" 2>/dev/null; then rm -rf "$left"; fi
    done
}

unpack() {
    mkdir "$scratch/tree"
    if has tar && has gzip; then
        tar -xzf "$scratch/tarball" -C "$scratch/tree"
    elif python_here; then
        "$python" -I -c 'import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$scratch/tarball" "$scratch/tree"
    else
        fail 3 "There is no tar with gzip and no Python in this image, so the tarball cannot be unpacked."
    fi
}

case $url in
    https://*) ;;
    file:///*) ;;
    http://*)
        [ "${FLASH_WORKER_ALLOW_HTTP:-}" = 1 ] || fail 2 \
            "$url is not https. FLASH_WORKER_ALLOW_HTTP=1 allows it: the SHA-256 is checked all the same."
        ;;
    *) fail 2 "$url is neither an https:// nor a file:/// address." ;;
esac
case $sha256 in
    *[!0-9a-f]*) fail 2 "$sha256 is no SHA-256: 64 digits, 0 to 9 and a to f." ;;
    ????????????????????????????????????????????????????????????????) ;;
    '') case $url in file:*) ;; *) fail 2 "A SHA-256 is needed for $url." ;; esac ;;
    *) fail 2 "$sha256 is no SHA-256: 64 digits, 0 to 9 and a to f." ;;
esac

digest_of /dev/null >/dev/null || fail 3 \
    "There is no sha256sum, shasum, openssl or Python in this image, so nothing can be verified."
umask 022
home=${FLASH_WORKER_DIR:-/opt/flashpool-worker}
mkdir -p "$home" 2>/dev/null || :
if ! writable "$home" && [ -z "${FLASH_WORKER_DIR:-}" ] && [ -n "${HOME:-}" ]; then
    home=$HOME/.cache/flashpool-worker
    mkdir -p "$home" 2>/dev/null || :
fi
writable "$home" || fail 5 "$home is not writable: FLASH_WORKER_DIR names another folder."
cache=${FLASHPOOL_VOLUME:-/runpod-volume}/flashpool-worker

if [ -n "$sha256" ] && [ -x "$home/$sha256/bootstrap.sh" ]; then
    say "version $version is unpacked in $home"
    exec sh "$home/$sha256/bootstrap.sh" "$@"
fi

sweep_home
scratch=$(mktemp -d "$home/.scratch.$$.XXXXXX") || fail 5 "There is no room in $home."
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' HUP INT TERM

cached=
if [ -n "$sha256" ] && take "$cache/$sha256.tar.gz"; then
    cached=yes
    say "version $version from the volume, $cache"
elif [ -n "$sha256" ] && take "$home/$sha256.tar.gz"; then
    say "version $version from this container, $home"
else
    case $url in
        file:*)
            path=${url#file://}
            [ -f "$path" ] || fail 3 "There is no file $path."
            if ! take "$path"; then
                [ -n "$found" ] || fail 5 "$path could not be read, or there is no room in $home."
                fail 4 "$path is not the tarball that is wanted."
            fi
            ;;
        *)
            say "fetching version $version: $url"
            download
            ;;
    esac
    sha256=${sha256:-$found}
fi

if [ -z "$cached" ] && writable "${cache%/*}"; then
    store "$scratch/tarball" "$cache/$sha256.tar.gz" || say "$cache is not writable: the next pod fetches the tarball again."
    sweep_volume
fi

unpack || fail 5 "The tarball cannot be unpacked in $home. Is there room?"
[ -x "$scratch/tree/bootstrap.sh" ] || fail 4 "$url holds no bootstrap.sh: it is no tarball of flashpool."
if [ ! -x "$home/$sha256/bootstrap.sh" ]; then rm -rf "${home:?}/$sha256"; fi
# Two starts at once may both get here: the first `mv` counts. A second `mv` moves its folder into
# the existing one, from which it is removed below.
[ -d "$home/$sha256" ] || mv "$scratch/tree" "$home/$sha256" || fail 5 "$home is not writable."
rm -rf "$home/$sha256/tree" "$scratch"
trap - EXIT HUP INT TERM
exec sh "$home/$sha256/bootstrap.sh" "$@"
