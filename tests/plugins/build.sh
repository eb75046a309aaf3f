#!/bin/bash
# Builds the plugins that are committed here, and the built-in one in src/service/greet.
#
#   build.sh [c] [assemblyscript] [rust]   builds these groups (all, if none is named), puts the
#                                          .wasm files in place and writes SHA256SUMS
#   build.sh --check                       compares the committed .wasm files with SHA256SUMS
#
# Checking needs only coreutils and findutils. Building needs, on Debian 12 with its security
# updates:
#
#   c               apt-get install clang lld
#   assemblyscript  Node.js 20 or newer with npm, which fetches the two packages in package.json
#   rust            apt-get install rustc-web cargo-web rust-web-src lld-22 wasi-libc
#                   cargo fetches crates. The standard library for WebAssembly is built from
#                   rust-web-src, as Debian ships none.
#
# The rust-web packages exclude Debian's own rustc and rustup. Where those are to stay, unpack the
# packages and the libraries they depend on elsewhere with `dpkg-deb -x`, and say where they are:
#
#   LD_LIBRARY_PATH=… PLUGIN_CARGO=… PLUGIN_RUSTC=… PLUGIN_WASM_LD=… PLUGIN_WASI_LIBC=… build.sh rust
#
# The same versions of the tools give the same bytes, whatever the directory. The digests in
# SHA256SUMS are those of clang and lld 14.0.6, the packages in package-lock.json, and rustc
# 1.96.0 with lld 22.1.8 and wasi-libc 0.0~git20220510.

set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
cd "$here"

# Every committed plugin.
plugins=(
    ../../src/service/greet/greet.wasm
    assemblyscript/no_abort.wasm
    assemblyscript/words.wasm
    c/crash.wasm
    c/text.wasm
    rust-host/call_host.wasm
    rust-panic/panics.wasm
    rust/totals.wasm
    # Not built here: a test compares them with their texts, which it reads itself.
    wat/fetch.wasm
    wat/mirror.wasm
)

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || fail "$1 is missing; the head of this script says where it is from"
}

# Linkers make their output executable; these files are data.
put() {
    install -m 644 "$1" "$2"
}

check() {
    sha256sum --check --strict --quiet SHA256SUMS || fail "committed plugins differ from SHA256SUMS"
    # One that SHA256SUMS does not list would pass unseen.
    local listed found
    listed=$(sed 's/^[0-9a-f]*  //' SHA256SUMS | sort)
    found=$(find ../../src/service/greet . -name '*.wasm' | sed 's|^\./||' | sort)
    [ "$listed" = "$found" ] || fail "SHA256SUMS lists
$listed
but there are
$found"
    echo "${#plugins[@]} plugins match SHA256SUMS"
}

build_c() {
    need clang
    need wasm-ld
    local source strip
    for source in ../../src/service/greet/greet.c c/text.c c/crash.c; do
        # The one that shows where it failed keeps the names of its functions.
        strip=--strip-all
        [ "$source" != c/crash.c ] || strip=--strip-debug
        # The stack comes first in memory, so that an overflow traps instead of running into
        # data; it is small, so that an instance is one page. Bulk memory lets the compiler copy
        # without a memcpy to call.
        clang --target=wasm32-unknown-unknown -std=c11 -O2 -mbulk-memory \
            -ffreestanding -fno-builtin -nostdlib -Wall -Wextra -Werror \
            -Wl,--no-entry -Wl,$strip -Wl,--stack-first -Wl,-z,stack-size=4096 \
            "$source" -o "$scratch/c.wasm"
        put "$scratch/c.wasm" "${source%.c}.wasm"
    done
}

build_assemblyscript() {
    need npm
    local work=$scratch/assemblyscript
    mkdir "$work"
    cp assemblyscript/{package.json,package-lock.json,words.ts} "$work"
    (
        cd "$work"
        npm ci --ignore-scripts --no-audit --no-fund
        asc=(node_modules/.bin/asc words.ts -O3 --runtime incremental)
        "${asc[@]}" --use abort=words/trap --outFile words.wasm
        # What comes out when a customer forgets `--use abort`: Extism hosts refuse its import.
        "${asc[@]}" --outFile no_abort.wasm
    )
    put "$work/words.wasm" assemblyscript/words.wasm
    put "$work/no_abort.wasm" assemblyscript/no_abort.wasm
}

build_rust() {
    local cargo=${PLUGIN_CARGO:-/usr/bin/cargo}
    local rustc=${PLUGIN_RUSTC:-/usr/bin/rustc}
    local wasm_ld=${PLUGIN_WASM_LD:-wasm-ld-22}
    local wasi_libc=${PLUGIN_WASI_LIBC:-/usr/lib/wasm32-wasi}
    need "$cargo"
    need "$rustc"
    need "$wasm_ld"
    [ -f "$wasi_libc/libc.a" ] || fail "$wasi_libc/libc.a is missing; the head of this script says where it is from"
    # Away from this repository, whose settings for cargo are not these crates'.
    cp -R rust rust-host rust-panic "$scratch"
    local crate target
    for crate in rust rust-host rust-panic; do
        # The one that panics has WASI's standard error to say so.
        target=wasm32-unknown-unknown
        [ "$crate" != rust-panic ] || target=wasm32-wasip1
        (
            cd "$scratch/$crate"
            unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
            # Building the standard library and trimming paths are unstable: the bootstrap
            # variable admits them on a stable compiler. Untrimmed, the plugin would name the
            # directories of the machine that built it.
            export RUSTC=$rustc RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_TRIM_PATHS=all
            export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$wasm_ld CARGO_TARGET_WASM32_WASIP1_LINKER=$wasm_ld
            # Debian's C library, as its Rust brings none.
            export CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="-Clink-self-contained=no -Ctarget-feature=+crt-static -L$wasi_libc"
            "$cargo" build --locked --release --target "$target" \
                --target-dir "$scratch/target" -Zbuild-std=std,panic_abort -Ztrim-paths
        )
    done
    local built=$scratch/target/wasm32-unknown-unknown/release
    put "$built/totals.wasm" rust/totals.wasm
    put "$built/call_host.wasm" rust-host/call_host.wasm
    put "$scratch/target/wasm32-wasip1/release/panics.wasm" rust-panic/panics.wasm
}

if [ "${1:-}" = --check ]; then
    [ $# -eq 1 ] || fail "--check stands alone"
    check
    exit
fi

[ $# -gt 0 ] || set -- c assemblyscript rust
for group; do
    case $group in
    c | assemblyscript | rust) ;;
    *) fail "no group $group: there are c, assemblyscript and rust" ;;
    esac
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for group; do
    "build_$group"
done
sha256sum "${plugins[@]}" >SHA256SUMS
check
