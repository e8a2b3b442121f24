// Verify evidence of flask-imcallback with the packages of Go's checksum database.
//
// Usage: outside_verifier CHECKPOINT VKEY EVIDENCE
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
}

func root(leaves []string) tlog.Hash {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var hashes []tlog.Hash
		for _, index := range indexes {
			hashes = append(hashes, stored[index])
		}
		return hashes, nil
	})
	for number, leaf := range leaves {
		hashes, err := tlog.StoredHashes(int64(number), []byte(leaf), reader)
		check(err)
		stored = append(stored, hashes...)
	}
	hash, err := tlog.TreeHash(int64(len(leaves)), reader)
	check(err)
	return hash
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	check(err)
	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	signed, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	file, err := os.Open(os.Args[3])
	check(err)
	var entries, leaves []string
	var seal struct{ Root string }
	finish := func() {
		if len(leaves) > 0 {
			if hash := root(leaves); hex.EncodeToString(hash[:]) != seal.Root {
				check(fmt.Errorf("the root of seal %d differs", len(entries)))
			}
		}
		leaves = nil
	}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		sealed := strings.SplitN(lines.Text(), "\t", 2)[0]
		if strings.HasPrefix(sealed, "{") {
			finish()
		}
		if strings.HasPrefix(sealed, `{"seal":`) {
			check(json.Unmarshal([]byte(sealed), &seal))
			entries = append(entries, sealed)
		} else if strings.HasPrefix(sealed, "[") {
			leaves = append(leaves, sealed)
		}
	}
	want := fmt.Sprintf("%s\n%d\n%s\n", verifier.Name(), len(entries), root(entries))
	if signed.Text != want {
		check(fmt.Errorf("the checkpoint is\n%sbut the seals give\n%s", signed.Text, want))
	}
	fmt.Println("accepted:", len(entries), "seals")
}
