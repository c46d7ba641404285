package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
)

// The limits of a session's queue.
const (
	maxQueued      = 1000
	maxQueuedBytes = 64 << 20
)

// SendEvents stores events that a client sends and tells the agent loop.
//
// A custom tool's result enters the log at once, the others wait in the queue
// until the loop takes them. A session that has something to do after that is
// running when it is acknowledged. A confirmation or result that was given already
// is answered with what was stored then, so that a repeated request does no harm;
// one that contradicts it is refused.
func (s *Service) SendEvents(ctx context.Context, caller Caller, id string, req api.EventsSend) (api.EventsSent, error) {
	if err := checkSend(req.Events); err != nil {
		return api.EventsSent{}, err
	}
	if s.loop == nil {
		return api.EventsSent{}, noLoop()
	}
	send := sending{service: s, params: req.Events}
	for range 50 { // each try is overtaken by a log that grows meanwhile
		if _, err := s.store.Session(ctx, caller.Workspace, id); err != nil {
			return api.EventsSent{}, sessionFault(id, err)
		}
		if err := send.answers(ctx, id); err != nil {
			return api.EventsSent{}, err
		}
		rec, stored, err := s.turns.change(ctx, caller.Workspace, id, send.decide)
		if errors.Is(err, errOvertaken) {
			continue
		}
		if err != nil {
			return api.EventsSent{}, sessionFault(id, err)
		}
		s.loop.Wake(rec)
		return send.reply(stored), nil
	}
	return api.EventsSent{}, Faultf(Unavailable, "Session %s is too busy; try again", printable(id))
}

// noLoop refuses work that nobody would do.
func noLoop() error {
	return Faultf(Invalid, "This server runs no agents: it has no model to ask.")
}

// checkSend holds what the events of a request must be together.
func checkSend(events []api.EventParams) error {
	switch n := len(events); {
	case n == 0:
		return badField("events", "List should have at least 1 item")
	case n > api.MaxSendEvents:
		return badField("events", "List should have at most %d items", api.MaxSendEvents)
	}
	for i, e := range events {
		if e.Type != api.EventSystemMessage {
			continue
		}
		if i != len(events)-1 {
			return badField(fmt.Sprintf("events[%d]", i), "A system.message must be the last event of a request")
		}
		if i == 0 || events[i-1].Type != api.EventUserMessage && events[i-1].Type != api.EventUserCustomToolResult {
			return badField(fmt.Sprintf("events[%d]", i), "A system.message must directly follow the user.message or user.custom_tool_result that it accompanies")
		}
	}
	return nil
}

// errOvertaken says that a log has grown since it was looked at.
var errOvertaken = errors.New("the log has grown meanwhile")

// sending is one request to send.
type sending struct {
	service *Service
	params  []api.EventParams
	looked  int64                  // Seq of the newest event when answered was made; -1: nothing had to be looked at
	given   map[string]EventRecord // use → what was logged in answer to it before
	ids     []string               // of the stored events, in the order of params
	before  map[string]EventRecord // those among them that were there before
}

// uses are the ids of the uses that the request answers.
func (s *sending) uses() map[int]string {
	uses := map[int]string{}
	for i, p := range s.params {
		if id := useAnswered(p); id != "" {
			uses[i] = id
		}
	}
	return uses
}

// useAnswered is the id of the use that an event answers, or nothing.
func useAnswered(p api.EventParams) string {
	switch {
	case p.Confirmation != nil:
		return p.Confirmation.ToolUseID
	case p.ToolResult != nil:
		return p.ToolResult.CustomToolUseID
	}
	return ""
}

// answers looks up the uses that the request answers: each must be in the log,
// of the right kind, and open, unless it was answered in this way before.
func (s *sending) answers(ctx context.Context, session string) (err error) {
	s.looked, s.given = -1, map[string]EventRecord{}
	uses := s.uses()
	if len(uses) == 0 {
		return nil
	}
	if s.looked, err = s.service.store.LastEvent(ctx, session); err != nil {
		return err
	}
	for i := range s.params {
		id, ok := uses[i]
		if !ok {
			continue
		}
		at := fmt.Sprintf("events[%d].tool_use_id", i)
		if s.params[i].ToolResult != nil {
			at = fmt.Sprintf("events[%d].custom_tool_use_id", i)
		}
		use, err := s.service.store.Event(ctx, session, id)
		if errors.Is(err, ErrNoRecord) {
			return badField(at, "%s is not a tool use of this session", printable(id))
		}
		if err != nil {
			return err
		}
		if err := checkUse(at, use, s.params[i]); err != nil {
			return err
		}
		given, err := s.service.answerOf(ctx, use)
		if err != nil {
			return err
		}
		switch {
		case given.Type == s.params[i].Type:
			s.given[id] = given
		case given.ID != "":
			return badField(at, "%s does not wait for an answer any more", id)
		}
	}
	return nil
}

// checkUse holds that a use takes the kind of answer that is given.
func checkUse(at string, use EventRecord, answer api.EventParams) error {
	if answer.ToolResult != nil {
		if use.Type != api.EventAgentCustomToolUse {
			return badField(at, "%s is not the use of a custom tool", use.ID)
		}
		return nil
	}
	if use.Type != api.EventAgentToolUse && use.Type != api.EventAgentMCPToolUse {
		return badField(at, "%s is not a tool use that can be confirmed", use.ID)
	}
	var fields api.ToolUseFields
	if err := use.read(&fields); err != nil {
		return err
	}
	if fields.EvaluatedPermission != "ask" {
		return badField(at, "%s does not ask for a confirmation", use.ID)
	}
	return nil
}

// answerOf finds what closed a use in the log: its answer, its result, or the end
// of its turn. An open use has none.
func (s *Service) answerOf(ctx context.Context, use EventRecord) (EventRecord, error) {
	filter := EventFilter{Types: []string{
		api.EventUserToolConfirmation, api.EventUserCustomToolResult, api.EventAgentToolResult, api.EventAgentMCPToolResult,
		api.EventSessionIdle, api.EventSessionTerminated,
	}}
	after := use.Seq
	for more := true; more; {
		var events []EventRecord
		var err error
		if events, more, err = s.store.Events(ctx, use.Session, filter, EventPage{After: after, Limit: 100, Bytes: maxCatchUp}); err != nil {
			return EventRecord{}, err
		}
		for _, e := range events {
			closed, err := closes(e, use.ID)
			if err != nil || closed {
				return e, err
			}
			after = e.Seq
		}
	}
	return EventRecord{}, nil
}

// closes tells whether an event closes a use.
func closes(e EventRecord, use string) (bool, error) {
	switch e.Type {
	case api.EventSessionTerminated:
		return true, nil
	case api.EventSessionIdle:
		// A session that is idle for another reason has ended the turn.
		var f api.IdleFields
		err := e.read(&f)
		return f.StopReason.Type != api.StopRequiresAction, err
	}
	id, err := answeredUse(e)
	return id == use, err
}

// answeredUse is the use that a stored answer or result belongs to.
func answeredUse(e EventRecord) (string, error) {
	var f struct {
		Tool   string `json:"tool_use_id"`
		MCP    string `json:"mcp_tool_use_id"`
		Custom string `json:"custom_tool_use_id"`
	}
	err := e.read(&f)
	return f.Tool + f.MCP + f.Custom, err // one of them is there
}

// decide makes the change, in the transaction.
func (s *sending) decide(state LogState, now time.Time) (LogChange, error) {
	var change LogChange
	rec := state.Session
	if !rec.ArchivedAt.IsZero() {
		return change, sessionArchived(rec.ID)
	}
	if rec.Status == api.SessionTerminated {
		return change, Faultf(Invalid, "Session %s is terminated.", rec.ID)
	}
	if s.looked >= 0 && state.Last != s.looked {
		return change, errOvertaken
	}
	d, err := readSession(rec)
	if err != nil {
		return change, err
	}
	queued, err := state.Queued()
	if err != nil {
		return change, err
	}
	if err := s.store(&change, d, queued); err != nil {
		return change, err
	}
	if err := checkQueue(rec.ID, queued, change.Queue); err != nil {
		return change, err
	}
	if rec.Status != api.SessionIdle {
		return change, nil
	}
	return change, s.follow(&change, rec, d, queued)
}

// follow gives an idle session the status that follows from what was sent, in the
// same moment: whoever reads the session after the acknowledgement finds it running
// if there is something to do, and a server that is killed now takes it up.
func (s *sending) follow(change *LogChange, rec SessionRecord, d sessionDocument, queued []EventRecord) error {
	added := slices.Concat(change.Log, change.Queue)
	if len(added) == 0 {
		return nil // all of it was sent before
	}
	runs := len(d.Waiting) == 0 && slices.ContainsFunc(added, func(e EventRecord) bool { return e.Type == api.EventUserMessage })
	var left []string
	if len(d.Waiting) > 0 {
		var err error
		if left, err = StillWaiting(d.Waiting, slices.Concat(queued, added)); err != nil {
			return err
		}
		runs = len(left) == 0
	}
	switch {
	case runs:
		begin, err := s.service.statusEvents(rec, api.EventSessionRunning, api.EventThreadRunning)
		if err != nil {
			return err
		}
		change.Log = append(begin, change.Log...)
	case len(change.Log) > 0: // some of the results that it waits for
		idle, err := s.service.waitEvents(d, left)
		if err != nil {
			return err
		}
		change.Log = append(change.Log, idle...)
	}
	return nil
}

// StillWaiting are the uses among waiting that none of the events answers, in
// their order.
func StillWaiting(waiting []string, events []EventRecord) ([]string, error) {
	left := slices.Clone(waiting)
	for _, e := range events {
		if e.Type != api.EventUserToolConfirmation && e.Type != api.EventUserCustomToolResult {
			continue
		}
		use, err := answeredUse(e)
		if err != nil {
			return nil, err
		}
		left = slices.DeleteFunc(left, func(id string) bool { return id == use })
	}
	return left, nil
}

// waitEvents let a session wait on for the answers to uses.
func (s *Service) waitEvents(d sessionDocument, uses []string) (events []EventRecord, err error) {
	idle := api.IdleFields{StopReason: api.StopReason{Type: api.StopRequiresAction, EventIDs: uses}}
	for _, e := range []struct {
		kind   string
		fields any
	}{
		{api.EventThreadIdle, api.ThreadIdleFields{ThreadFields: d.thread(), IdleFields: idle}},
		{api.EventSessionUsage, nil}, // filled in from the session's totals
		{api.EventSessionIdle, idle},
	} {
		made := EventRecord{ID: s.turns.EventID(), Type: e.kind}
		if e.fields != nil {
			if made.Fields, err = json.Marshal(e.fields); err != nil {
				return nil, fmt.Errorf("writing an event: %w", err)
			}
		}
		events = append(events, made)
	}
	return events, nil
}

// store puts the events of the request where they belong, unless they are there.
func (s *sending) store(change *LogChange, d sessionDocument, queued []EventRecord) error {
	s.ids, s.before = nil, map[string]EventRecord{}
	given := map[string]EventRecord{}
	for _, e := range queued {
		if e.Type != api.EventUserToolConfirmation {
			continue
		}
		use, err := answeredUse(e)
		if err != nil {
			return err
		}
		given[use] = e
	}
	for use, e := range s.given {
		given[use] = e
	}
	for i, p := range s.params {
		use := useAnswered(p)
		if e, ok := given[use]; ok && use != "" {
			if err := sameAnswer(fmt.Sprintf("events[%d]", i), use, e, p); err != nil {
				return err
			}
			s.ids = append(s.ids, e.ID)
			s.before[e.ID] = e
			continue
		}
		if err := s.allowed(i, d); err != nil {
			return err
		}
		fields, err := p.Fields()
		if err != nil {
			return fmt.Errorf("writing the fields of an event: %w", err)
		}
		e := EventRecord{ID: s.service.turns.EventID(), Type: p.Type, Fields: fields}
		s.ids = append(s.ids, e.ID)
		if p.ToolResult != nil {
			change.Log = append(change.Log, e)
		} else {
			change.Queue = append(change.Queue, e)
		}
		if use != "" {
			given[use] = e
		}
	}
	return nil
}

// sameAnswer holds that a use is not answered again in another way: a client that
// repeats a request gets what was stored, one that changes its mind is told that it
// is too late.
func sameAnswer(at, use string, given EventRecord, again api.EventParams) error {
	text, err := again.Fields()
	if err != nil {
		return fmt.Errorf("writing the fields of an event: %w", err)
	}
	before, err := answerValue(given.Fields)
	if err != nil {
		return err
	}
	now, err := answerValue(text)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before, now) {
		return badField(at, "%s has been answered already, and differently", use)
	}
	return nil
}

// answerValue is what an answer says, for comparing: what is absent counts as what
// it stands for.
func answerValue(fields []byte) (map[string]any, error) {
	var value map[string]any
	dec := json.NewDecoder(bytes.NewReader(fields))
	dec.UseNumber()
	if err := dec.Decode(&value); err != nil {
		return nil, fmt.Errorf("reading the fields of an answer: %w", err)
	}
	if value["is_error"] == false {
		delete(value, "is_error")
	}
	if content, ok := value["content"].([]any); ok && len(content) == 0 {
		delete(value, "content")
	}
	if value["deny_message"] == "" {
		delete(value, "deny_message")
	}
	return value, nil
}

// allowed tells whether a session takes an event in the state it is in.
func (s *sending) allowed(i int, d sessionDocument) error {
	p := s.params[i]
	at := fmt.Sprintf("events[%d]", i)
	if p.Interrupt != nil && p.Interrupt.SessionThreadID != nil && *p.Interrupt.SessionThreadID != d.Thread {
		return badField(at+".session_thread_id", "%s is not a thread of this session", printable(*p.Interrupt.SessionThreadID))
	}
	if p.Type == api.EventSystemMessage && len(d.Waiting) > 0 && s.params[i-1].Type != api.EventUserCustomToolResult {
		return badField(at, "While the session waits for %s, a system.message is accepted only behind a tool result", strings.Join(d.Waiting, ", "))
	}
	return nil
}

// checkQueue bounds a session's queue.
func checkQueue(session string, queued, more []EventRecord) error {
	size := 0
	for _, events := range [][]EventRecord{queued, more} {
		for _, e := range events {
			size += len(e.Fields)
		}
	}
	if len(more) > 0 && (len(queued)+len(more) > maxQueued || size > maxQueuedBytes) {
		return Faultf(RateLimited, "Session %s has %d events waiting; at most %d events of %d bytes together can wait", session, len(queued), maxQueued, maxQueuedBytes)
	}
	return nil
}

// reply is the stored events in the order of the request.
func (s *sending) reply(stored []EventRecord) api.EventsSent {
	byID := s.before
	for _, e := range stored {
		byID[e.ID] = e
	}
	var sent api.EventsSent
	for _, id := range s.ids {
		e := byID[id]
		if e.Seq == 0 {
			e.ProcessedAt = time.Time{} // it waits
		}
		sent.Data = append(sent.Data, e.Wire())
	}
	return sent
}
