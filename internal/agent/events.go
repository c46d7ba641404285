package agent

import (
	"encoding/json"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// event makes an event for a Step.
func (r *run) event(kind string, fields any) control.EventRecord {
	e := control.EventRecord{ID: r.turns.EventID(), Type: kind}
	if fields != nil {
		e.Fields = mustJSON(fields)
	}
	return e
}

// running are the events that begin or resume a turn.
func (r *run) running() []control.EventRecord {
	return []control.EventRecord{r.event(api.EventSessionRunning, nil), r.event(api.EventThreadRunning, r.thread)}
}

// idle are the events that end a turn or let it wait.
func (r *run) idle(reason api.StopReason, details *api.StopDetails) []control.EventRecord {
	f := api.IdleFields{StopReason: reason, StopDetails: details}
	return []control.EventRecord{
		r.event(api.EventThreadIdle, api.ThreadIdleFields{ThreadFields: r.thread, IdleFields: f}),
		r.event(api.EventSessionUsage, nil), // control fills it in
		r.event(api.EventSessionIdle, f),
	}
}

// failure is a session.error.
func (r *run) failure(kind, message, status string) control.EventRecord {
	return r.event(api.EventSessionError, api.ErrorFields{Error: api.SessionError{
		Type: kind, Message: message, RetryStatus: api.RetryStatus{Type: status},
	}})
}

// requestEnd closes the open request.
func (r *run) requestEnd(usage api.ModelUsage, failed bool, private any) control.EventRecord {
	e := r.event(api.EventModelRequestEnd, api.ModelRequestEndFields{
		IsError: &failed, ModelRequestStartID: r.conv.request, ModelUsage: usage,
	})
	if private != nil {
		e.Private = mustJSON(private)
	}
	return e
}

// result is the event that answers a use.
func (r *run) result(u *use, content []json.RawMessage, isError bool) control.EventRecord {
	f := api.ToolResultFields{Content: content, IsError: &isError}
	kind := api.EventAgentToolResult
	if u.kind == toolset.KindMCP {
		kind, f.MCPToolUseID = api.EventAgentMCPToolResult, u.event
	} else {
		f.ToolUseID = u.event
	}
	return r.event(kind, f)
}

// ran is the result of a use that was run. The session's usage counts those that
// the server ran itself.
func (r *run) ran(u *use, res toolset.Result) control.EventRecord {
	e := r.result(u, res.Content, res.IsError)
	if name := u.call.Name; u.kind == toolset.KindBuiltin && (name == api.ToolWebFetch || name == api.ToolWebSearch) {
		e.Private = mustJSON(control.ServerToolRun{Tool: name})
	}
	return e
}

// replyEvents turns a reply into the events of a Step. ids are those of the
// messages that were previewed, by the index of their first block.
func (r *run) replyEvents(rep reply, ids map[int]string) []control.EventRecord {
	var events []control.EventRecord
	open := -1 // index in events of the message that further text joins
	var fields api.MessageFields
	for i, b := range rep.blocks {
		if b.kind != "text" {
			open = -1
		}
		switch b.kind {
		case "text":
			if b.text == "" {
				continue
			}
			if open < 0 {
				fields = api.MessageFields{}
				events = append(events, r.event(api.EventAgentMessage, nil))
				open = len(events) - 1
				if id := ids[i]; id != "" {
					events[open].ID = id
				}
			}
			fields.Content = append(fields.Content, textBlock("%s", b.text))
			events[open].Fields = mustJSON(fields)
		case "thinking", "redacted_thinking":
			e := r.event(api.EventAgentThinking, nil)
			if id := ids[i]; id != "" {
				e.ID = id
			}
			events = append(events, e)
		case "tool_use":
			events = append(events, r.useEvent(b))
		}
	}
	return append(events, r.requestEnd(rep.usage, false, endPrivate{rep.content, rep.stop, rep.details}))
}

// useEvent is the event of a tool_use block, with what the policy says of it.
func (r *run) useEvent(b replyBlock) control.EventRecord {
	p := usePrivate{ToolUse: b.id}
	f := api.ToolUseFields{Name: b.name, Input: b.input}
	if f.Input == nil {
		f.Input, p.Broken = json.RawMessage("{}"), true
	}
	i := slices.IndexFunc(r.tools, func(t toolset.Tool) bool { return t.ModelName == b.name })
	kind := api.EventAgentToolUse
	switch {
	case p.Broken:
		f.EvaluatedPermission = "deny"
	case i < 0:
		p.Unknown, f.EvaluatedPermission = true, "deny"
	default:
		t := r.tools[i]
		f.Name, f.MCPServerName = t.Name, t.Server
		switch t.Kind {
		case toolset.KindMCP:
			kind = api.EventAgentMCPToolUse
		case toolset.KindCustom:
			kind = api.EventAgentCustomToolUse
		}
		if t.Kind != toolset.KindCustom {
			f.EvaluatedPermission, f.Evaluation = evaluate(t)
		}
	}
	e := r.event(kind, f)
	e.Private = mustJSON(p)
	return e
}

// evaluate applies a tool's permission policy. Atoll has no judge for the
// policy auto; it allows what stays inside the sandbox's files or reads from
// where the network policy allows, and asks about the rest: shell commands, and
// the tools of MCP servers, which act outside.
func evaluate(t toolset.Tool) (string, *api.ToolEvaluation) {
	switch t.Permission {
	case "always_allow":
		return "allow", &api.ToolEvaluation{Type: t.Permission}
	case "auto":
		p := &api.AutoPermission{Type: "ask", ReasonCode: "not_judged"}
		if t.Kind == toolset.KindBuiltin && t.Name != "bash" {
			p = &api.AutoPermission{Type: "allow"}
		}
		return p.Type, &api.ToolEvaluation{Type: t.Permission, EvaluatedPermission: p}
	}
	return "ask", &api.ToolEvaluation{Type: "always_ask"}
}
