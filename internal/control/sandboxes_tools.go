package control

import (
	"context"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// errNoTools: the engine's sandboxes hold no tools.
var errNoTools = Faultf(Invalid, "This server's sandboxes cannot run an agent's tools.")

// RunTool runs a tool call in the session's sandbox exactly once, waiting for
// the sandbox to be ready; see sandbox.Tools. When ctx ends, the call goes on
// and the same call asked for again gives its result.
func (s *Sandboxes) RunTool(ctx context.Context, caller Caller, session string, call sandbox.ToolCall) (sandbox.ToolResult, error) {
	if s.tools == nil {
		return sandbox.ToolResult{}, errNoTools
	}
	var result sandbox.ToolResult
	// A call that a sandbox's death met is known to the journal on its disk, so it
	// is asked for again in the one that was started anew.
	err := s.use(ctx, caller, session, again, func(u usage) (err error) {
		result, err = s.tools.RunTool(ctx, u.id, call)
		return err
	})
	return result, err
}

// CancelTool ends a tool call of the session; see sandbox.Tools.
func (s *Sandboxes) CancelTool(ctx context.Context, caller Caller, session, call string) error {
	if s.tools == nil {
		return errNoTools
	}
	return s.use(ctx, caller, session, again, func(u usage) error {
		return s.tools.CancelTool(ctx, u.id, call)
	})
}
