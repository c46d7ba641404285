package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// openTools opens the session's tools and asks what they are. It answers the MCP
// servers that are not to be had and of which the log has not been told in this
// run. errInterrupted if the user does not wait for that.
func (r *run) openTools() (missing []*toolset.ServerError, err error) {
	if r.open == nil {
		tools, err := r.runner.config.OpenTools(r.rec)
		if err != nil {
			return nil, fmt.Errorf("opening the session's tools: %w", err)
		}
		r.open, r.told = tools, map[string]bool{}
	}
	var tools []toolset.Tool
	var failed []*toolset.ServerError
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	stopped, err := r.watch(func() { tools, failed = r.open.Tools(ctx) }, func() error { stop(); return nil })
	switch {
	case err != nil:
		return nil, err
	case stopped:
		return nil, errInterrupted
	case r.ctx.Err() != nil:
		return nil, r.ctx.Err()
	}
	r.tools = tools
	return slices.DeleteFunc(slices.Clone(failed), func(f *toolset.ServerError) bool { return r.told[f.Server] }), nil
}

// serversFailed are the events that tell of MCP servers.
func (r *run) serversFailed(missing []*toolset.ServerError) (events []control.EventRecord) {
	for _, f := range missing {
		events = append(events, r.serverFailed(f))
	}
	return events
}

// markTold notes that the log tells of MCP servers; in this run it is not said again.
func (r *run) markTold(missing []*toolset.ServerError) {
	for _, f := range missing {
		r.told[f.Server] = true
	}
}

// serverFailed says that an MCP server is not to be had. The turn goes on without
// it, and the next one tries it again.
func (r *run) serverFailed(f *toolset.ServerError) control.EventRecord {
	kind := api.ErrorMCPConnection
	if f.Auth {
		kind = api.ErrorMCPAuthentication
	}
	return r.event(api.EventSessionError, api.ErrorFields{Error: api.SessionError{
		Type: kind, Message: f.Error(), MCPServerName: f.Server, RetryStatus: api.RetryStatus{Type: api.RetryRetrying},
	}})
}

func (r *run) closeTools() {
	if r.open == nil {
		return
	}
	if err := r.open.Close(); err != nil {
		r.runner.log.WarnContext(r.ctx, "closing a session's tools", "session_id", r.id, "error", err)
	}
	r.open, r.tools = nil, nil
}

// runTool runs a use to its end, or answers it if it may not run.
func (r *run) runTool(u *use) error {
	if u.decision == "deny" {
		return r.record(r.result(u, []json.RawMessage{textBlock("%s", u.deny)}, true))
	}
	missing, err := r.openTools()
	switch {
	case errors.Is(err, errInterrupted):
		return r.interrupt(nil)
	case err != nil:
		return err
	}
	if len(missing) > 0 {
		if err := r.record(r.serversFailed(missing)...); err != nil {
			return err
		}
		r.markTold(missing)
	}
	call := u.call
	call.Again = u.at.Before(r.runner.begun)
	tools := r.open
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	var res toolset.Result
	var failed error
	stopped, err := r.watch(func() { res, failed = tools.Run(ctx, call) }, func() error { return tools.Cancel(r.ctx, call) })
	switch {
	case err != nil:
		return fmt.Errorf("interrupting a tool: %w", err)
	case !stopped:
		return r.toolEnded(u, res, failed)
	case failed != nil:
		return r.interrupt(nil) // the log says that it has no result
	}
	return r.interrupt([]control.EventRecord{r.ran(u, res)})
}

// toolEnded writes a result down. Where the sandbox itself fails, the model is
// told what a client of the API would be.
func (r *run) toolEnded(u *use, res toolset.Result, err error) error {
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	var fault *control.Fault
	switch {
	case err == nil && res.Failed != nil:
		return r.record(r.serverFailed(res.Failed), r.ran(u, res))
	case err == nil:
		return r.record(r.ran(u, res))
	case errors.As(err, &fault) && fault.Code == control.CodeBuildFailed:
		// The log was told when the build failed.
		return r.record(r.result(u, []json.RawMessage{textBlock("%s", fault.Message)}, true))
	case errors.As(err, &fault):
		return r.record(r.failure(api.ErrorUnknown, fault.Message, api.RetryRetrying),
			r.result(u, []json.RawMessage{textBlock("%s", fault.Message)}, true))
	}
	r.runner.log.ErrorContext(r.ctx, "a tool could not be run", "session_id", r.id, "tool", u.call.Name, "error", err)
	return r.record(r.result(u, []json.RawMessage{textBlock("The tool could not be run: the server had an internal error.")}, true))
}
