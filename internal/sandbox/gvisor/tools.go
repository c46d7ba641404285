package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

var _ sandbox.Tools = (*Engine)(nil)

// toolTries is how often a request is put to a sandbox whose client program
// does not end as it should: something in there may have killed it. The same
// request again is the same call.
const toolTries = 3

// RunTool runs a call exactly once.
func (e *Engine) RunTool(ctx context.Context, id string, call sandbox.ToolCall) (sandbox.ToolResult, error) {
	b, err := e.open(id)
	if err != nil {
		return sandbox.ToolResult{}, err
	}
	if len(call.Input) > sandbox.MaxToolInput {
		return sandbox.ToolResult{}, fmt.Errorf("running a tool: an input of %d bytes is too long", len(call.Input))
	}
	within := ctx
	if call.Patience > 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, call.Patience)
		defer cancel()
	}
	reply, err := e.askTools(within, id, wire.ToolRequest{
		Op: wire.OpRun, ID: call.ID, Name: call.Name, Input: call.Input,
		Dir: b.meta.Dir, Env: environment(append([]string{"HOME=/root"}, b.meta.Env...), sandbox.Command{}),
		Roots: call.Roots, Spill: call.Spill, TimeoutMS: call.Timeout.Milliseconds(),
	})
	switch {
	case err == nil:
	case within.Err() != nil && ctx.Err() == nil:
		return sandbox.ToolResult{}, fmt.Errorf("%w: none within %s", sandbox.ErrBadReply, call.Patience)
	default:
		return sandbox.ToolResult{}, err
	}
	return sandbox.ToolResult{Text: reply.Text, IsError: reply.IsError}, nil
}

// CancelTool ends a call.
func (e *Engine) CancelTool(ctx context.Context, id, call string) error {
	_, err := e.askTools(ctx, id, wire.ToolRequest{Op: wire.OpCancel, ID: call})
	return err
}

// askTools has the guest program put a request to the sandbox's tool daemon.
func (e *Engine) askTools(ctx context.Context, id string, req wire.ToolRequest) (wire.ToolReply, error) {
	if !wire.ValidCallID(req.ID) {
		return wire.ToolReply{}, fmt.Errorf("running a tool: %q is not the id of a call", req.ID)
	}
	var message bytes.Buffer
	if err := wire.WriteMessage(&message, req); err != nil {
		return wire.ToolReply{}, fmt.Errorf("running a tool: %w", err)
	}
	var last error
	for range toolTries {
		reply, err := e.askOnce(ctx, id, message.Bytes())
		if !errors.Is(err, sandbox.ErrBadReply) {
			return reply, err
		}
		last = err
	}
	return wire.ToolReply{}, last
}

func (e *Engine) askOnce(ctx context.Context, id string, message []byte) (wire.ToolReply, error) {
	answer := &bounded{max: wire.MaxToolReply(sandbox.MaxToolText)}
	process, err := e.guestCommand(ctx, id, []string{"call"}, bytes.NewReader(message), answer)
	if err != nil {
		return wire.ToolReply{}, err
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = process.Signal(kill, int(unix.SIGKILL)) // the client; the call goes on
		return wire.ToolReply{}, err
	}
	reply, err := wire.ReadToolReply(answer.data, sandbox.MaxToolText)
	if err != nil {
		if gone := e.gone(id); gone != nil {
			return reply, gone
		}
		return reply, fmt.Errorf("%w (exit status %d): %w", sandbox.ErrBadReply, exit.Code, err)
	}
	return reply, nil
}

// bounded keeps the first bytes that are written to it and drops the rest.
type bounded struct {
	data []byte
	max  int
}

func (b *bounded) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), b.max-len(b.data))]...)
	return len(p), nil
}
