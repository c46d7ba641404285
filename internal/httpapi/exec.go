package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/sandbox"
)

const (
	// maxExecTime is the longest timeout that can be asked for.
	maxExecTime = 24 * time.Hour
	// maxExecOutput is how much output a reply that does not stream holds, in
	// bytes of each of the two streams.
	maxExecOutput = 10 << 20
	// killWait is how long a killed command may take to be gone.
	killWait = 10 * time.Second
)

// exec runs a command and streams what it writes, or collects it.
func (s *server) exec(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	var req api.Exec
	if err := decodeLarge(r, &req); err != nil {
		return err
	}
	cmd, err := execCommand(req)
	if err != nil {
		return err
	}
	q := queryOf(r)
	stream := q.boolean("stream", true)
	if q.err != nil {
		return q.err
	}
	limit := time.Duration(req.TimeoutMS.Or(0)) * time.Millisecond
	if stream {
		return s.execStream(w, r, caller, cmd, limit)
	}
	// Nothing is run whose output would find no room at all: once the command has
	// run, an answer that clients take for "try again" would make it run twice.
	memory := noteOf(r).memory
	if !memory.take(2 * outputAhead * outputWeight) {
		return errNoMemory("The command was not run, as there is no room for its output")
	}
	stdout, stderr := &capped{memory: memory, paid: outputAhead}, &capped{memory: memory, paid: outputAhead}
	defer stdout.close()
	defer stderr.close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	end, err := s.run(r.Context(), caller, r.PathValue("id"), cmd, limit, func() {})
	if err != nil {
		return err
	}
	result := api.ExecResult{ExecEnd: end, Truncated: stdout.isCut() || stderr.isCut()}
	result.Stdout, result.StdoutEncoding = encodeOutput(stdout.close())
	result.Stderr, result.StderrEncoding = encodeOutput(stderr.close())
	return reply(w, result)
}

// execStream writes one JSON object a line.
func (s *server) execStream(w http.ResponseWriter, r *http.Request, caller control.Caller, cmd sandbox.Command, limit time.Duration) error {
	lines := &lineWriter{w: w, flusher: http.NewResponseController(w)}
	defer lines.close()
	stdout, stderr := &outputWriter{lines: lines, name: "stdout"}, &outputWriter{lines: lines, name: "stderr"}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	end, err := s.run(r.Context(), caller, r.PathValue("id"), cmd, limit, lines.unblock)
	if err != nil {
		return s.endStream(r, func() {}, lines.begun(), err)
	}
	stdout.flush()
	stderr.flush()
	lines.write(api.ExecExit{Type: "exit", ExecEnd: end})
	return nil
}

// run runs a command until it ends, its time is up, or the client has gone.
// unblock is called before the command is killed, and frees its output from a
// client that does not read.
func (s *server) run(ctx context.Context, caller control.Caller, session string, cmd sandbox.Command, limit time.Duration, unblock func()) (api.ExecEnd, error) {
	p, err := s.sandboxes.Exec(ctx, caller, session, cmd)
	if err != nil {
		return api.ExecEnd{}, err
	}
	start := time.Now() // what the sandbox needed to get ready does not count
	wait, cancel := ctx, context.CancelFunc(func() {})
	if limit > 0 {
		wait, cancel = context.WithTimeout(ctx, limit)
	}
	defer cancel()
	exit, err := p.Wait(wait)
	end := api.ExecEnd{}
	if err != nil && wait.Err() != nil {
		// Its time is up or the client has gone. Either way nothing of it stays.
		unblock()
		end.TimedOut = ctx.Err() == nil
		kill, stop := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer stop()
		if err := p.Signal(kill, int(syscall.SIGKILL)); err != nil {
			return end, err
		}
		if exit, err = p.Wait(kill); err == nil && ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		return end, err
	}
	end.Code, end.DurationMS = exit.Code, time.Since(start).Milliseconds()
	if exit.Signal != "" {
		end.Signal = &exit.Signal
	}
	return end, nil
}

func execCommand(req api.Exec) (sandbox.Command, error) {
	bad := func(field, reason string) (sandbox.Command, error) {
		return sandbox.Command{}, control.Faultf(control.Invalid, "%s: %s", field, reason)
	}
	cmd := sandbox.Command{Args: req.Command.Or(nil), Dir: req.Cwd.Or("")}
	switch {
	case req.Command.Given() == req.Shell.Given():
		return bad("command", "Exactly one of command and shell is required")
	case req.Shell.Given():
		cmd.Args = []string{"/bin/sh", "-c", req.Shell.Value}
	case len(cmd.Args) == 0 || cmd.Args[0] == "":
		return bad("command", "List should have at least 1 item, the program")
	}
	for _, arg := range cmd.Args {
		if strings.Contains(arg, "\x00") {
			return bad("command", "NUL is not allowed in an argument")
		}
	}
	if strings.Contains(cmd.Dir, "\x00") || len(cmd.Dir) > maxPath {
		return bad("cwd", "Input should be a path without NUL")
	}
	env := req.Env.Or(nil)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(env[name], "\x00") {
			return bad("env", "A name is not empty and holds no '='; neither it nor its value holds NUL")
		}
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	if t := req.TimeoutMS; t.Given() && (t.Value < 1 || t.Value > maxExecTime.Milliseconds()) {
		return bad("timeout_ms", "Input should be between 1 and 86400000")
	}
	stdin := []byte(req.Stdin.Or(""))
	switch req.StdinEncoding.Or("utf-8") {
	case "utf-8":
	case "base64":
		decoded, err := base64.StdEncoding.DecodeString(req.Stdin.Or(""))
		if err != nil {
			return bad("stdin", "Input should be valid base64")
		}
		stdin = decoded
	default:
		return bad("stdin_encoding", "Input should be 'utf-8' or 'base64'")
	}
	if len(stdin) > 0 {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	return cmd, nil
}

// errClosed is for output that comes after the reply has ended.
var errClosed = errors.New("the reply has ended")

const (
	// outputWeight is how many bytes of memory a byte of collected output takes at
	// most until it is sent: in the buffer that grows, as text, and in the reply.
	outputWeight = 4
	// outputAhead is how many bytes of each stream have their memory before the
	// command runs.
	outputAhead = 32 << 10
)

// capped keeps the beginning of what is written to it: what has room in the
// reply, and as long as the request gets memory for it.
type capped struct {
	memory *memory

	mu     sync.Mutex   // guards what follows
	b      bytes.Buffer // what is kept
	paid   int          // how many bytes of b have their memory
	cut    bool         // more came than is kept; nothing is kept any more
	closed bool         // nothing is taken any more
}

// Write implements io.Writer; it takes everything and keeps what has room.
func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return 0, errClosed
	case c.cut:
		return len(p), nil
	}
	kept := p
	if room := maxExecOutput - c.b.Len(); len(kept) > room {
		c.cut = true
		kept = kept[:room]
	}
	if need := c.b.Len() + len(kept); need > c.paid {
		grown := min(max(need, 2*c.paid), maxExecOutput)
		if c.memory.take(int64(grown-c.paid) * outputWeight) {
			c.paid = grown
		} else {
			c.cut = true
			kept = kept[:c.paid-c.b.Len()]
		}
	}
	c.b.Write(kept)
	return len(p), nil
}

func (c *capped) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// close returns what was kept and refuses what comes later.
func (c *capped) close() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.b.Bytes()
}

var _ io.Writer = (*capped)(nil)
