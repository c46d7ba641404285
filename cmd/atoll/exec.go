package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
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
	return `Standard input is sent to the command unless it is a terminal; it is read to its end first. The exit code is
the command's; 124 when --timeout ended it, 125 when atoll itself failed, 130 when it was interrupted.`
}

// execEvent is one line of the reply.
type execEvent struct {
	Type     string  `json:"type"`
	Data     string  `json:"data"`
	Encoding string  `json:"encoding"`
	Code     int     `json:"code"`
	Signal   *string `json:"signal"`
	TimedOut bool    `json:"timed_out"`
	Message  string  `json:"message"`
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
	body, err := c.body(io)
	if err != nil {
		return 0, err
	}
	res, err := client.send(ctx, http.MethodPost, "/atoll/v1/sessions/"+url.PathEscape(c.Session)+"/exec", nil, body)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	return follow(res.Body, io.out, io.err)
}

// body makes the request of the flags and of standard input.
func (c execCmd) body(in *streams) (map[string]any, error) {
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
	input, err := readInput(in.in)
	if err != nil {
		return nil, err
	}
	if len(input) > 0 {
		body["stdin"], body["stdin_encoding"] = base64.StdEncoding.EncodeToString(input), "base64"
	}
	return body, nil
}

// maxInput is what a request may carry as standard input.
const maxInput = 16 << 20

// readInput reads standard input to its end. A terminal or another device
// counts as empty.
func readInput(in io.Reader) ([]byte, error) {
	if f, ok := in.(*os.File); ok {
		info, err := f.Stat()
		if err != nil || info.Mode()&os.ModeCharDevice != 0 {
			return nil, nil // closed, a terminal, /dev/null
		}
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading standard input: %w", err)
	case len(b) > maxInput:
		return nil, fmt.Errorf("standard input is larger than %d MiB: put it into a file of the session first (PUT /atoll/v1/sessions/ID/files)", maxInput>>20)
	}
	return b, nil
}

// follow passes output on until the exit event and answers its code.
func follow(events io.Reader, stdout, stderr io.Writer) (int, error) {
	dec := json.NewDecoder(events)
	for {
		var e execEvent
		switch err := dec.Decode(&e); {
		case errors.Is(err, io.EOF):
			return 0, errors.New("the connection ended before the command")
		case err != nil:
			return 0, fmt.Errorf("reading the command's output: %w", err)
		}
		out := stdout
		switch e.Type {
		case "stderr":
			out = stderr
		case "stdout":
		case "exit":
			if e.TimedOut {
				return codeTimedOut, nil
			}
			return e.Code, nil
		case "error":
			return 0, errors.New(e.Message)
		default:
			continue
		}
		data := []byte(e.Data)
		if e.Encoding == "base64" {
			var err error
			if data, err = base64.StdEncoding.DecodeString(e.Data); err != nil {
				return 0, fmt.Errorf("reading the command's output: %w", err)
			}
		}
		if _, err := out.Write(data); err != nil {
			return 0, fmt.Errorf("writing the command's output: %w", err)
		}
	}
}
