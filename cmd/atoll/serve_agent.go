package main

import (
	"context"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// openAgents makes the loop that runs agents.
func (w *wiring) openAgents(context.Context) error {
	var err error
	if w.model, err = w.cfg.Model.client(); err != nil {
		return err
	}
	roots, err := w.cfg.roots()
	if err != nil {
		return err
	}
	set, err := w.cfg.Agent.tools(roots, w.log)
	if err != nil {
		return err
	}
	w.agents = agent.New(agent.Config{
		Turns: w.turns, Model: w.model, MaxRequests: w.cfg.Agent.MaxRequests, MaxRetries: w.cfg.Agent.MaxRetries, Logger: w.log,
		OpenTools: func(rec control.SessionRecord) (agent.Tools, error) { return w.openTools(set, rec) },
	})
	if w.model == nil {
		w.log.Info("no model is configured (model.base_url or ATOLL_MODEL_URL): agents do not run")
	}
	return nil
}

// openTools opens the tools of one session.
func (w *wiring) openTools(set *toolset.Toolset, rec control.SessionRecord) (agent.Tools, error) {
	a, err := control.SessionAgent(rec)
	if err != nil {
		return nil, err
	}
	reach, err := control.SessionEgress(rec)
	if err != nil {
		return nil, err
	}
	client := func(source string) egress.Client {
		meta := reach.Meta
		meta.Source = source
		return egress.Client{ID: rec.ID, Source: source, Meta: meta, Policy: reach.Policy}
	}
	session := set.Open(toolset.SessionConfig{
		ID: rec.ID, Box: sessionBox{w.sandboxes, control.Caller{Workspace: rec.Workspace, Kind: control.KeyAPI}, rec.ID},
		Tools: a.Tools, MCPServers: a.MCPServers, Web: reach.Policy,
		DialWeb: w.network.Dialer(client(egress.SourceWebTool)), DialMCP: w.network.Dialer(client(egress.SourceMCP)),
		RefuseWeb: func(address, list string) {
			if err := w.network.Refuse(client(egress.SourceWebTool), address, list); err != nil {
				w.log.Warn("recording a refusal of a web tool", "session_id", rec.ID, "error", err)
			}
		},
	})
	if !slices.ContainsFunc(a.Tools, func(tool api.Tool) bool { return tool.Toolset != nil && tool.Toolset.Type == api.ToolsetAgent }) {
		return session, nil
	}
	return awake{session, w.sandboxes.Hold(rec)}, nil
}

// awake are tools that work in a sandbox: it wakes while the model still thinks
// about its first step, and stays awake for the turn.
type awake struct {
	*toolset.Session
	release func()
}

// Close implements agent.Tools.
func (a awake) Close() error {
	defer a.release()
	return a.Session.Close()
}

// sessionBox is one session's sandbox as its tools see it.
type sessionBox struct {
	sandboxes *control.Sandboxes
	caller    control.Caller
	session   string
}

// RunTool implements toolset.Box.
func (b sessionBox) RunTool(ctx context.Context, call sandbox.ToolCall) (sandbox.ToolResult, error) {
	return b.sandboxes.RunTool(ctx, b.caller, b.session, call)
}

// CancelTool implements toolset.Box.
func (b sessionBox) CancelTool(ctx context.Context, call string) error {
	return b.sandboxes.CancelTool(ctx, b.caller, b.session, call)
}

// reportSandbox writes what happened to a session's sandbox into its log.
func (w *wiring) reportSandbox(rec control.SessionRecord, what control.SandboxEvent, words string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.turns.Report(ctx, rec, words, what == control.SandboxUnbuildable); err != nil {
		w.log.ErrorContext(ctx, "telling a session of its sandbox", "session_id", rec.ID, "event", what, "error", err)
	}
}
