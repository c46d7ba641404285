package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// conversation is what a session's log says: the messages that the model is
// sent, the tool calls that are open, and where the turn stands. It is a fold of
// the log and of nothing else, so that a server that was killed finds the same.
type conversation struct {
	last     int64 // Seq of the newest event
	status   string
	messages []message
	uses     []*use // the tool uses of the model's last reply
	request  string // id of the span.model_request_start without an end, or empty
	stop     string // the stop reason of the last reply; empty before the first and while a request is open
	details  *api.StopDetails
	waiting  []string        // the event ids that the last idle waits for
	failed   int             // requests that failed in a row
	requests int             // requests of this turn that succeeded
	unusable int             // replies in a row with calls of which none was fit to run
	fresh    bool            // the turn has begun, and nothing of it was taken from the queue yet
	tokens   int             // size of the conversation at the last reply
	reduced  bool            // compacted, and no reply since
	toolIDs  map[string]bool // the model's ids of all its tool uses
}

// use is a tool use of the model's last reply.
type use struct {
	seq      int64
	event    string // id of the event
	toolUse  string // the model's id
	kind     toolset.Kind
	call     toolset.Call
	decision string // allow, ask, deny
	deny     string // why it was denied
	problem  string // why it can never run; empty when the model gave a whole call
	done     bool   // it has a result
	at       time.Time
}

// usePrivate is what is kept beside a use event.
type usePrivate struct {
	ToolUse string `json:"tool_use"`          // the id by which the model knows the call
	Problem string `json:"problem,omitempty"` // why the call cannot run, in words for the model
	Broken  bool   `json:"broken,omitempty"`  // cut off; written by servers that kept no Problem
	Unknown bool   `json:"unknown,omitempty"` // the model made the name up
}

// endPrivate is what is kept beside a span.model_request_end: the reply as it
// has to come back to the model. It is absent when the request failed, and when
// the reply was a summary.
type endPrivate struct {
	Content []json.RawMessage `json:"content"`
	Stop    string            `json:"stop"`
	Details *api.StopDetails  `json:"details,omitempty"`
}

// compactedPrivate is what is kept beside an agent.thread_context_compacted:
// the conversation as it goes on.
type compactedPrivate struct {
	Messages []message `json:"messages"`
}

// apply takes the next event of the log.
func (c *conversation) apply(e control.EventRecord) error {
	if e.Seq != c.last+1 {
		return fmt.Errorf("event %s is number %d of the log, after %d", e.ID, e.Seq, c.last)
	}
	c.last = e.Seq
	var err error
	switch e.Type {
	case api.EventUserMessage, api.EventSystemMessage:
		err = c.applyMessage(e)
	case api.EventUserToolConfirmation:
		err = c.applyConfirmation(e)
	case api.EventUserInterrupt:
		c.applyInterrupt()
	case api.EventAgentToolUse, api.EventAgentMCPToolUse, api.EventAgentCustomToolUse:
		err = c.applyUse(e)
	case api.EventAgentToolResult, api.EventAgentMCPToolResult, api.EventUserCustomToolResult:
		err = c.applyResult(e)
	case api.EventModelRequestStart:
		c.request, c.stop, c.uses, c.fresh = e.ID, "", nil, false
	case api.EventModelRequestEnd:
		err = c.applyEnd(e)
	case api.EventContextCompacted:
		err = c.applyCompacted(e)
	default:
		err = c.applyStatus(e)
	}
	if err != nil {
		return fmt.Errorf("reading event %s (%s): %w", e.ID, e.Type, err)
	}
	return nil
}

func (c *conversation) applyMessage(e control.EventRecord) error {
	var f api.MessageFields
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		return err
	}
	c.fresh = false
	if e.Type == api.EventSystemMessage {
		c.messages = addSystem(c.messages, written(f.Content)...)
	} else {
		c.messages = addUser(c.messages, written(f.Content)...)
	}
	return nil
}

func (c *conversation) applyStatus(e control.EventRecord) error {
	switch e.Type {
	case api.EventSessionRunning:
		if c.status != api.SessionRescheduling && len(c.waiting) == 0 {
			c.requests, c.failed, c.unusable = 0, 0, 0 // a new turn
			c.fresh = c.status != api.SessionRunning
		}
		c.status, c.waiting = api.SessionRunning, nil
	case api.EventSessionRescheduled:
		c.status = api.SessionRescheduling
	case api.EventSessionTerminated:
		c.status, c.fresh = api.SessionTerminated, false
	case api.EventSessionIdle:
		var f api.IdleFields
		if err := json.Unmarshal(e.Fields, &f); err != nil {
			return err
		}
		c.status, c.waiting, c.failed, c.fresh = api.SessionIdle, f.StopReason.EventIDs, 0, false
	}
	return nil
}

func (c *conversation) applyUse(e control.EventRecord) error {
	var f api.ToolUseFields
	var p usePrivate
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		return err
	}
	if err := json.Unmarshal(e.Private, &p); err != nil {
		return err
	}
	u := &use{
		seq: e.Seq, event: e.ID, toolUse: p.ToolUse, decision: f.EvaluatedPermission, at: e.ProcessedAt,
		call: toolset.Call{ID: e.ID, Server: f.MCPServerName, Name: f.Name, Input: f.Input},
	}
	switch e.Type {
	case api.EventAgentToolUse:
		u.kind = toolset.KindBuiltin
	case api.EventAgentMCPToolUse:
		u.kind = toolset.KindMCP
	default:
		u.kind = toolset.KindCustom
	}
	if p.Broken {
		p.Problem = "The input of this call was cut off at the token limit of the reply. Send less at once."
	}
	u.problem = p.Problem
	if c.toolIDs == nil {
		c.toolIDs = map[string]bool{}
	}
	c.toolIDs[u.toolUse] = true
	switch {
	case p.Problem != "":
		u.deny = p.Problem
	case p.Unknown:
		u.deny = fmt.Sprintf("There is no tool %q.", f.Name)
	case u.decision == "deny":
		u.deny = "The permission policy denies this call."
	}
	c.uses = append(c.uses, u)
	return nil
}

func (c *conversation) find(event string) *use {
	i := slices.IndexFunc(c.uses, func(u *use) bool { return u.event == event })
	if i < 0 {
		return nil
	}
	return c.uses[i]
}

func (c *conversation) applyConfirmation(e control.EventRecord) error {
	var f api.ConfirmationFields
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		return err
	}
	u := c.find(f.ToolUseID)
	if u == nil || u.decision != "ask" {
		return nil // answered twice, or after an interrupt: the first answer counts
	}
	u.decision = f.Result
	if f.Result == "deny" {
		u.deny = "The user denied this call."
		if f.DenyMessage != nil && *f.DenyMessage != "" {
			u.deny += " " + *f.DenyMessage
		}
	}
	return nil
}

func (c *conversation) applyResult(e control.EventRecord) error {
	var f struct {
		api.ToolResultFields
		CustomToolUseID string `json:"custom_tool_use_id"`
	}
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		return err
	}
	u := c.find(f.ToolUseID + f.MCPToolUseID + f.CustomToolUseID) // one of them is set
	if u == nil || u.done {
		return nil
	}
	u.done = true
	c.messages = addUser(c.messages, toolResult(u.toolUse, written(f.Content), f.IsError != nil && *f.IsError))
	return nil
}

// applyInterrupt closes what is open: the model hears that no result will come.
func (c *conversation) applyInterrupt() {
	for _, u := range c.open() {
		u.done = true
		c.messages = addUser(c.messages, toolResult(u.toolUse, []json.RawMessage{textBlock("The user interrupted before this call had a result.")}, true))
	}
}

func (c *conversation) applyEnd(e control.EventRecord) error {
	var f api.ModelRequestEndFields
	if err := json.Unmarshal(e.Fields, &f); err != nil {
		return err
	}
	c.request = ""
	if f.IsError != nil && *f.IsError {
		c.failed++
		return nil
	}
	c.failed = 0
	if len(e.Private) == 0 {
		return nil // a summary
	}
	var p endPrivate
	if err := json.Unmarshal(e.Private, &p); err != nil {
		return err
	}
	c.requests++
	if len(c.uses) > 0 && !slices.ContainsFunc(c.uses, func(u *use) bool { return u.problem == "" }) {
		c.unusable++
	} else {
		c.unusable = 0
	}
	u := f.ModelUsage
	c.tokens = u.InputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens + u.OutputTokens
	c.stop, c.details, c.reduced = p.Stop, p.Details, false
	if content := written(p.Content); len(content) > 0 {
		c.messages = addAssistant(c.messages, content...)
	}
	return nil
}

func (c *conversation) applyCompacted(e control.EventRecord) error {
	var p compactedPrivate
	if err := json.Unmarshal(e.Private, &p); err != nil {
		return err
	}
	c.messages, c.tokens, c.reduced, c.uses = p.Messages, 0, true, nil
	return nil
}

// open are the uses without a result.
func (c *conversation) open() []*use {
	return slices.DeleteFunc(slices.Clone(c.uses), func(u *use) bool { return u.done })
}

// asked are the ids of the open uses that somebody outside has to answer.
func (c *conversation) asked() []string {
	var ids []string
	for _, u := range c.open() {
		if u.decision == "ask" || u.kind == toolset.KindCustom && u.decision != "deny" {
			ids = append(ids, u.event)
		}
	}
	return ids
}

// runnable is the first open use that this server has to do something about: to
// run it, or to say that it was denied.
func (c *conversation) runnable() *use {
	for _, u := range c.open() {
		if u.decision == "deny" || u.kind != toolset.KindCustom && u.decision == "allow" {
			return u
		}
	}
	return nil
}
