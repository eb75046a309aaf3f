// A plugin as customers write them in Go, with its runtime: for `cargo bench --bench engines -- init --plugin`.
package main

import (
	"strings"

	"github.com/extism/go-pdk"
)

//go:wasmexport count_vowels
func countVowels() int32 {
	count := 0
	for _, letter := range pdk.InputString() {
		if strings.ContainsRune("aeiouAEIOU", letter) {
			count++
		}
	}
	pdk.OutputJSON(map[string]int{"count": count})
	return 0
}

func main() {}
