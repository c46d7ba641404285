package agent

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

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

// result is the event that answers a use. Content that the wire does not take is
// not stored, wherever it came from.
func (r *run) result(u *use, content []json.RawMessage, isError bool) control.EventRecord {
	if err := api.CheckResultContent(content); err != nil {
		r.runner.log.WarnContext(r.ctx, "a tool's result is not as the wire wants it", "session_id", r.id, "tool", u.call.Name, "error", err)
		content, isError = []json.RawMessage{textBlock("The call ran, and its result cannot be shown: %v", err)}, true
	}
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
//
// A refused reply is shown as far as it is words, and nothing else of it remains:
// its calls are dropped, and the model does not get it back.
func (r *run) replyEvents(rep reply, ids map[int]string) []control.EventRecord {
	var events []control.EventRecord
	var back []json.RawMessage // the reply as the model gets it back
	open := -1                 // index in events of the message that further text joins
	var fields api.MessageFields
	add := func(e control.EventRecord, index int) {
		if id := ids[index]; id != "" {
			e.ID = id
		}
		events = append(events, e)
	}
	taken := map[string]bool{}
	for _, b := range rep.blocks {
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
				add(r.event(api.EventAgentMessage, nil), b.index)
				open = len(events) - 1
			}
			fields.Content = append(fields.Content, textBlock("%s", b.text))
			events[open].Fields = mustJSON(fields)
		case "thinking", "redacted_thinking":
			add(r.event(api.EventAgentThinking, nil), b.index)
		case "tool_use":
			if rep.stop == stopRefusal {
				continue
			}
			e, id := r.useEvent(b, taken)
			events = append(events, e)
			b.id = id
		}
		if block := b.back(); block != nil {
			back = append(back, block)
		}
	}
	end := endPrivate{Content: back, Stop: rep.stop, Details: rep.details}
	if end.Stop == "" {
		end.Stop = stopEndTurn
	}
	switch {
	case rep.stop == stopRefusal:
		end.Content = nil
	case rep.stop == stopPauseTurn && len(taken) == 0:
		if end.Content = trimEnd(back); len(end.Content) == 0 {
			end.Stop = stopEndTurn // there is nothing that the model could go on from
		}
	default:
		end.Content = trimThinking(back)
	}
	return append(events, r.requestEnd(rep.usage, false, end))
}

// useEvent is the event of a tool_use block, with what the policy says of it, and
// the id by which the model knows the call: its own if that is one of the API's
// form that no other call of the conversation has. taken has those of the reply.
func (r *run) useEvent(b replyBlock, taken map[string]bool) (control.EventRecord, string) {
	p := usePrivate{ToolUse: b.id, Problem: b.problem}
	f := api.ToolUseFields{Name: clipped(b.name, 200), Input: b.input}
	i := slices.IndexFunc(r.tools, func(t toolset.Tool) bool { return t.ModelName == b.name })
	kind := api.EventAgentToolUse
	switch {
	case i < 0:
		p.Unknown, f.EvaluatedPermission = true, "deny"
	case r.tools[i].Kind == toolset.KindMCP:
		kind = api.EventAgentMCPToolUse
	case r.tools[i].Kind == toolset.KindCustom && b.problem == "":
		// A call of a custom tool that cannot run is not its client's business, and an
		// agent.custom_tool_use could not say so.
		kind = api.EventAgentCustomToolUse
	}
	if i >= 0 {
		f.Name, f.MCPServerName = r.tools[i].Name, r.tools[i].Server
		switch {
		case b.problem != "":
			f.EvaluatedPermission = "deny"
		case kind != api.EventAgentCustomToolUse:
			f.EvaluatedPermission, f.Evaluation = evaluate(r.tools[i])
		}
	}
	e := r.event(kind, nil)
	if !toolUseID.MatchString(b.id) || taken[b.id] || r.conv.toolIDs[b.id] {
		p.ToolUse = "toolu_" + strings.TrimPrefix(e.ID, "sevt_")
	}
	taken[p.ToolUse] = true
	e.Fields, e.Private = mustJSON(f), mustJSON(p)
	return e, p.ToolUse
}

// toolUseID is what the Messages API takes as the id of a tool_use.
var toolUseID = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)

// evaluate applies a tool's permission policy. Atoll has no judge for the
// policy auto; it allows what stays inside the sandbox's files or reads from
// where the network policy allows, and asks about the rest: shell commands, and
// the tools of MCP servers, which act outside.
func evaluate(t toolset.Tool) (string, *api.ToolEvaluation) {
	switch t.Permission {
	case "always_allow":
		return "allow", &api.ToolEvaluation{Type: t.Permission}
	case "auto":
		p := &api.AutoPermission{Type: "ask", ReasonCode: "indeterminate"}
		if t.Kind == toolset.KindBuiltin && t.Name != "bash" {
			p = &api.AutoPermission{Type: "allow"}
		}
		return p.Type, &api.ToolEvaluation{Type: t.Permission, EvaluatedPermission: p}
	}
	return "ask", &api.ToolEvaluation{Type: "always_ask"}
}
