// Package tools runs the tools of agents inside a sandbox: bash, read, write,
// edit, glob and grep. It is a part of the guest program.
//
// A daemon in the sandbox runs the calls and keeps their results; the server
// talks to it through short-lived clients: see [Client] and [Daemon]. The daemon
// has no descriptor of the host, so that it outlives the server and can be
// checkpointed with the sandbox. Everything here is at the mercy of the programs
// in the sandbox, which run as the same user: it keeps them from accidents, not
// from malice, and the server trusts none of it.
package tools

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// The limits of the tools, as the official executors have them.
const (
	maxFile        = 256 << 10 // read and edit: a file, or the selected lines
	maxOutput      = 100 << 10 // bash and grep: bytes of output
	maxCharacters  = 100_000   // of one result; more is spilled to a file
	maxSpill       = 64 << 20  // bytes of one spilled output
	maxEntries     = 50_000    // files that glob and grep look at
	maxPaths       = 200       // results of glob
	maxGrepFile    = 8 << 20   // bytes of a file that grep searches
	maxLinks       = 40        // symbolic links on the way to a file
	defaultTimeout = 120 * time.Second
	maxTimeout     = 24 * time.Hour
)

// errInterrupted is the cause with which a cancelled call ends.
var errInterrupted = errors.New("interrupted")

// result is the text that the model is told.
type result struct {
	text    string
	isError bool
}

func say(format string, args ...any) result  { return result{text: fmt.Sprintf(format, args...)} }
func fail(format string, args ...any) result { return result{fmt.Sprintf(format, args...), true} }

// place is where the file tools of one call may go, and the environment of the
// programs it starts.
type place struct {
	dir     string
	roots   []string
	env     []string
	staging string // for ReplaceFile
}

// toolFunc runs one of the tools that hold no state.
type toolFunc func(ctx context.Context, p place, input []byte) result

// stateless are all tools but bash.
func stateless(name string) toolFunc {
	switch name {
	case "read":
		return read
	case "write":
		return write
	case "edit":
		return edit
	case "glob":
		return glob
	case "grep":
		return grep
	}
	return nil
}

// runStateless runs a tool within its time; staging is ReplaceFile's. A tool that blocks in the kernel is
// left to itself.
func runStateless(ctx context.Context, req wire.ToolRequest, staging string, f toolFunc) result {
	timeout := defaultTimeout
	if req.TimeoutMS > 0 {
		timeout = min(time.Duration(req.TimeoutMS)*time.Millisecond, maxTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		done <- f(ctx, place{dir: req.Dir, roots: req.Roots, env: req.Env, staging: staging}, req.Input)
	}()
	select {
	case r := <-done:
		if ctx.Err() == nil {
			return r
		}
	case <-ctx.Done():
	}
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return fail("%s: interrupted", req.Name)
	}
	return fail("tool %q timed out after %s", req.Name, timeout)
}

// decode reads a tool's input; its failure is for the model.
func decode(tool string, input []byte, v any) (result, bool) {
	if len(input) == 0 {
		input = []byte("{}")
	}
	if err := json.Unmarshal(input, v); err != nil {
		return fail("invalid %s input: %v", tool, err), false
	}
	return result{}, true
}

// reason words a failure of the system the same way everywhere.
func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "no such file or directory"
	case errors.Is(err, fs.ErrPermission):
		return "permission denied"
	case errors.Is(err, syscall.ENOTDIR):
		return "not a directory"
	case errors.Is(err, syscall.EISDIR):
		return "is a directory"
	case errors.Is(err, errLinks), errors.Is(err, syscall.ELOOP):
		return errLinks.Error()
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno.Error()
	}
	return "i/o error"
}

// clip keeps what leaves the sandbox valid and bounded.
func clip(text string, max int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= max {
		return text
	}
	for max > 0 && !utf8.RuneStart(text[max]) {
		max--
	}
	return text[:max]
}
