#!/usr/bin/env bash
# A bounded run of fuzz targets: `tests/fuzz/run.sh SECONDS [TARGET…]`, all of them unless some are named. One line for
# each, and a failure when anything was found. Needs cargo-fuzz, a nightly toolchain and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:?usage: tests/fuzz/run.sh SECONDS [TARGET…]}
shift
[ $# -gt 0 ] || set -- upload evaluate alike once kernel http settings

# What is found on the way is of this run alone: the corpus that is committed is written by hand.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
options=()
[ -z "${CARGO_TARGET_DIR:-}" ] || options+=(--target-dir "$CARGO_TARGET_DIR")

# A program without sanitizer, whose processes compile: any of the targets as it is replayed.
cargo build --release --locked --quiet --manifest-path tests/fuzz/Cargo.toml "${options[@]}" --no-default-features \
    --bin settings
export FUZZ_COMPILE_WORKER="${CARGO_TARGET_DIR:-$PWD/tests/fuzz/target}/release/settings"

outcome=0
printf '%-9s %9s %8s %9s %9s  %s\n' target inputs seconds coverage 'peak MiB' result
for target in "$@"; do
    # The server takes as long to build as the rest.
    features=(--no-default-features)
    [ "$target" != http ] || features=()
    mkdir "$work/$target"
    result=ok
    began=$SECONDS
    cargo +nightly fuzz run --fuzz-dir tests/fuzz "${options[@]}" "${features[@]}" "$target" \
        "$work/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=600 -rss_limit_mb=3072 -print_final_stats=1 \
        >"$work/log" 2>&1 || result="FAILED, see $target.log"
    took=$((SECONDS - began))
    [ "$result" = ok ] || { outcome=1; cp "$work/log" "tests/fuzz/$target.log"; }
    stat() { sed -n "s/^stat::$1: *//p" "$work/log" | tail -1; }
    coverage=$(grep -oE 'cov: [0-9]+' "$work/log" | tail -1 | cut -d' ' -f2)
    printf '%-9s %9s %8s %9s %9s  %s\n' "$target" "$(stat number_of_executed_units)" "$took" "${coverage:-}" \
        "$(stat peak_rss_mb)" "$result"
done
exit $outcome
