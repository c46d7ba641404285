package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// Exit codes of atoll exec and atoll shell that are not the command's own. As
// with timeout(1) and docker: a command may use them too.
const (
	codeTimedOut    = 124 // --timeout ended the command
	codeOwn         = 125 // atoll failed: no server, no session, a lost connection
	codeInterrupted = 130 // Ctrl-C or SIGTERM here; the command was killed
)

type execCmd struct {
	clientFlags
	Cwd     string        `help:"Working directory in the sandbox." placeholder:"DIR"`
	Env     []string      `help:"NAME=VALUE added to the command's environment; repeatable." short:"e" sep:"none" placeholder:"NAME=VALUE"`
	Timeout time.Duration `help:"Kill the command after this time and exit 124." placeholder:"SPAN"`

	Session string   `arg:"" help:"Session id."`
	Command []string `arg:"" passthrough:"" help:"Command and arguments, after -- if they begin with a dash."`
}

func (execCmd) Help() string {
	return `Standard input is sent to the command as it comes, unless it is a terminal; atoll shell is for those. The exit code is
the command's; 124 when --timeout ended it, 125 when atoll itself failed, 130 when it was interrupted.`
}

// execEvent is one frame of the reply.
type execEvent struct {
	Type     string `json:"type"` // stdout, stderr, stdin (a piece was taken), exit or error
	Data     string `json:"data"`
	Encoding string `json:"encoding"`
	Code     int    `json:"code"`
	TimedOut bool   `json:"timed_out"`
}

// Run runs the command and passes its output on as it comes.
func (c execCmd) Run(ctx context.Context, io *streams) error {
	code, err := c.run(ctx, io)
	switch {
	case ctx.Err() != nil:
		return &exitError{code: codeInterrupted}
	case err != nil:
		return &exitError{code: codeOwn, err: err}
	case code != 0:
		return &exitError{code: code}
	}
	return nil
}

func (c execCmd) run(ctx context.Context, io *streams) (int, error) {
	client, err := c.client(io)
	if err != nil {
		return 0, err
	}
	request, err := c.request()
	if err != nil {
		return 0, err
	}
	conn, err := client.dial(ctx, "/atoll/v1/sessions/"+url.PathEscape(c.Session)+"/exec")
	if err != nil {
		return 0, err
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, request); err != nil {
		return 0, fmt.Errorf("sending the command: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	taken := make(chan struct{}, inputWindow)
	// A read of standard input cannot be interrupted; the goroutine ends with the program.
	go func() {
		if err := sendPieces(ctx, conn, input(io.in), taken); err != nil {
			cancel(err)
		}
	}()
	code, err := follow(ctx, conn, taken, io.out, io.err)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return code, err
}

// request is the first frame: what to run, from the flags.
func (c execCmd) request() ([]byte, error) {
	args := c.Command
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return nil, errors.New("a command is needed")
	}
	body := map[string]any{"command": args}
	if c.Cwd != "" {
		body["cwd"] = c.Cwd
	}
	if c.Timeout != 0 {
		body["timeout_ms"] = c.Timeout.Milliseconds()
	}
	if len(c.Env) > 0 {
		env := map[string]string{}
		for _, entry := range c.Env {
			name, value, ok := strings.Cut(entry, "=")
			if !ok || name == "" {
				return nil, fmt.Errorf("--env: %q is not NAME=VALUE", entry)
			}
			env[name] = value
		}
		body["env"] = env
	}
	return json.Marshal(body)
}

// The protocol's numbers: standard input goes in pieces of at most inputFrame
// bytes, of which inputWindow may be under way.
const (
	inputFrame  = 64 << 10
	inputWindow = 16
)

// input is standard input as a command gets it: a terminal counts as empty.
func input(in io.Reader) io.Reader {
	if isTerminal(in) {
		return strings.NewReader("")
	}
	return in
}

// sendPieces sends input until its end, or until the connection's. taken
// gets a value for each piece that the command has taken. Its error is one of
// reading in.
func sendPieces(ctx context.Context, conn *websocket.Conn, in io.Reader, taken <-chan struct{}) error {
	buffer := make([]byte, inputFrame)
	for sent := 0; ; {
		n, err := in.Read(buffer)
		if n > 0 {
			if conn.Write(ctx, websocket.MessageBinary, buffer[:n]) != nil {
				return nil // the reader of the connection says why
			}
			sent++
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EBADF): // closed counts as empty
			_ = conn.Write(ctx, websocket.MessageBinary, nil) // as above
			return nil
		case err != nil:
			return fmt.Errorf("reading standard input: %w", err)
		}
		if sent < inputWindow {
			continue
		}
		select {
		case <-taken:
			sent--
		case <-ctx.Done():
			return nil
		}
	}
}

// follow passes output on until the exit event and answers its code.
func follow(ctx context.Context, conn *websocket.Conn, taken chan<- struct{}, stdout, stderr io.Writer) (int, error) {
	for {
		_, text, err := conn.Read(ctx)
		if err != nil {
			return 0, fmt.Errorf("the connection ended before the command: %w", err)
		}
		var e execEvent
		if err := json.Unmarshal(text, &e); err != nil {
			return 0, fmt.Errorf("reading the command's output: %w", err)
		}
		out := stdout
		switch e.Type {
		case "stderr":
			out = stderr
		case "stdout":
		case "stdin":
			select {
			case taken <- struct{}{}:
			default: // nobody counts any more, the input has ended
			}
			continue
		case "exit":
			_ = conn.Close(websocket.StatusNormalClosure, "") // the other side may have closed first
			if e.TimedOut {
				return codeTimedOut, nil
			}
			return e.Code, nil
		case "error":
			return 0, cmp.Or(wordsOf(text), errors.New("the server refused the command"))
		default:
			continue
		}
		data := []byte(e.Data)
		if e.Encoding == "base64" {
			if data, err = base64.StdEncoding.DecodeString(e.Data); err != nil {
				return 0, fmt.Errorf("reading the command's output: %w", err)
			}
		}
		if _, err := out.Write(data); err != nil {
			return 0, fmt.Errorf("writing the command's output: %w", err)
		}
	}
}
