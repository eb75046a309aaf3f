#!/usr/bin/env bash
# Builds main.go with standard Go (1.24 or newer, from the PATH) and Extism's Go PDK:
#
#     benches/plugins/go/build.sh vowels.wasm
#     cargo bench --bench engines -- init --plugin vowels.wasm --entry count_vowels
#
# The PDK comes from the Go module proxy, or from a checkout that EXTISM_GO_PDK names. The binary has 4.5 MB, which is why
# it is not in the repository.
set -euo pipefail
out=$(realpath -m "${1:?usage: build.sh FILE}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$(dirname "$0")/main.go" "$folder"
cd "$folder"
go mod init example.com/vowels
go mod edit -go=1.24 -require=github.com/extism/go-pdk@v1.1.3
if [ -n "${EXTISM_GO_PDK:-}" ]; then
    go mod edit -replace="github.com/extism/go-pdk=$(realpath "$EXTISM_GO_PDK")"
fi
GOFLAGS=-mod=mod GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o "$out" .
