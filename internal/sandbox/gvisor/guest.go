package gvisor

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/atoll-run/atoll/internal/durable"
)

//go:generate env CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o guest/bin/guest ./guest

// guestFiles holds the guest program when it was built. The directory is always
// there, so that a clean clone compiles.
//
//go:embed guest/bin
var guestFiles embed.FS

// errNoGuest tells the builder what is missing in a binary made by hand.
var errNoGuest = errors.New("this binary was built without its guest program: run `make build`")

// openGuest puts the guest program into dir, under the name of its content, and
// opens it. Sandboxes run it from the descriptor: it has no path in them.
func openGuest(dir string) (*os.File, error) {
	program, err := guestFiles.ReadFile("guest/bin/guest")
	if err != nil {
		return nil, errNoGuest
	}
	sum := sha256.Sum256(program)
	path := filepath.Join(dir, "guest-"+hex.EncodeToString(sum[:8]))
	if f, err := os.Open(path); err == nil {
		return f, nil
	}
	if err := durable.WriteFile(path, program, 0o555, durable.Process); err != nil {
		return nil, fmt.Errorf("placing the guest program: %w", err)
	}
	return os.Open(path)
}
