package sandbox

import (
	"context"
	"errors"
	"time"
)

// ErrBadReply: the program that runs tools in the sandbox said something that
// it does not say. Nothing from a sandbox is trusted; the reply is dropped.
var ErrBadReply = errors.New("the sandbox's tool runner gave an unusable reply")

// The tools that run inside a sandbox.
const (
	ToolBash  = "bash"
	ToolRead  = "read"
	ToolWrite = "write"
	ToolEdit  = "edit"
	ToolGlob  = "glob"
	ToolGrep  = "grep"
)

// Limits of what goes to and comes from a tool.
const (
	// MaxToolInput is the longest ToolCall.Input in bytes.
	MaxToolInput = 8 << 20
	// MaxToolText is the longest ToolResult.Text in bytes.
	MaxToolText = 1 << 20
)

// ToolCall is one call of a tool inside a sandbox.
type ToolCall struct {
	// ID names the call: 1–128 of [A-Za-z0-9_-]. The same ID is the same call.
	ID string
	// Name is one of the Tool constants; Input is the JSON object for it.
	Name string
	// Input is the JSON object for the tool, at most MaxToolInput.
	Input []byte
	// Roots are directories that the file tools may reach besides Spec.Dir.
	Roots []string
	// Spill is the directory for output that is too long for a result.
	Spill string
	// Timeout of a tool that brings none of its own. Zero means two minutes.
	Timeout time.Duration
	// Patience is how long RunTool waits for the call's end in a sandbox that
	// runs; then ErrBadReply. Zero means for ever.
	Patience time.Duration
}

// ToolResult is what came of a call, in the words that the model is told.
type ToolResult struct {
	Text string // valid UTF-8, at most MaxToolText bytes; may be empty
	// IsError tells the model that the tool failed or refused.
	IsError bool
}

// Tools is what an engine offers whose sandboxes hold the tools: one persistent
// shell and the file tools, run by a daemon in the sandbox that outlives the
// server. All methods may be called at the same time.
type Tools interface {
	// RunTool runs a call exactly once, whatever becomes of the server. A call
	// that never began is run; one that runs is waited for; of one that ended
	// the result is given again. One that was begun and whose outcome nobody
	// knows (the sandbox's processes were lost meanwhile) is not run again: its
	// result is an error that says so. The last 1024 calls are remembered.
	//
	// When ctx ends, RunTool returns its error and the call goes on: to end it
	// is CancelTool's part. Bash calls of one sandbox run one after the other in
	// the order they came.
	RunTool(ctx context.Context, id string, call ToolCall) (ToolResult, error)
	// CancelTool ends a call: what it runs is killed, and its result is an error
	// that says so, for RunTool too. A call that has not begun never will; one
	// that has ended keeps its result.
	CancelTool(ctx context.Context, id, call string) error
}
