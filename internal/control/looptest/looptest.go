// Package looptest plays an agent loop, for tests of what shows a session's
// events. Its agent has no model and no sandbox: it answers what it is told, and
// a few words make it do what a real one does.
//
//	ask     uses the tool bash, which has to be confirmed
//	custom  uses the custom tool lookup and waits for its result
//	hang    goes on until it is interrupted
//	fail    has a model that answers with errors until retries are exhausted
//	…       says "You said: …", with previews of it
package looptest

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// Player is a [control.Loop]. Close it before the store.
type Player struct {
	turns *control.Turns
	fail  func(error) // is told what went wrong

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	busy  map[string]bool // sessions that a goroutine looks after; true: look again
	ended []string
}

// New makes a player. fail is told what goes wrong; it may be a test's Error.
func New(turns *control.Turns, fail func(error)) *Player {
	p := &Player{turns: turns, fail: fail, busy: map[string]bool{}}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close stops what is played.
func (p *Player) Close() {
	p.cancel()
	p.work.Wait()
}

// EndedSessions are the sessions that have ended, in order.
func (p *Player) EndedSessions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.ended...)
}

// Ended implements [control.Loop].
func (p *Player) Ended(_ context.Context, session string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = append(p.ended, session)
	return nil
}

// Wake implements [control.Loop].
func (p *Player) Wake(rec control.SessionRecord) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.busy[rec.ID]; ok || p.ctx.Err() != nil {
		p.busy[rec.ID] = true
		return
	}
	p.busy[rec.ID] = false
	p.work.Go(func() { p.look(rec.Workspace, rec.ID) })
}

// look does what there is to do for a session.
func (p *Player) look(workspace, session string) {
	for {
		again, err := p.step(workspace, session)
		if errors.Is(err, control.ErrNoRecord) || errors.Is(err, control.ErrEnded) || errors.Is(err, context.Canceled) {
			again, err = false, nil
		}
		if err != nil && !errors.Is(err, control.ErrStale) {
			p.fail(err)
			again = false
		} else if err != nil {
			again = true // the log has grown: decide again
		}
		p.mu.Lock()
		if !again && !p.busy[session] {
			delete(p.busy, session)
			p.mu.Unlock()
			return
		}
		p.busy[session] = false
		p.mu.Unlock()
	}
}

// scene is a session as the player finds it.
type scene struct {
	p      *Player
	rec    control.SessionRecord
	thread api.ThreadFields
	last   int64
	// open is the newest use that has no answer in the log.
	open control.EventRecord
}

// step makes at most one step, and tells whether it made one.
func (p *Player) step(workspace, session string) (bool, error) {
	rec, log, queue, err := p.turns.Load(p.ctx, workspace, session, 0)
	if err != nil || !rec.ArchivedAt.IsZero() {
		return false, err
	}
	s := &scene{p: p, rec: rec}
	if s.thread, err = control.SessionThread(rec); err != nil {
		return false, err
	}
	answered := false
	took := false // a message since the session began to run
	for _, e := range log {
		s.last = e.Seq
		switch e.Type {
		case api.EventSessionRunning:
			took = false
		case api.EventUserMessage:
			took = true
		case api.EventAgentToolUse, api.EventAgentCustomToolUse:
			s.open, answered = e, false
		case api.EventUserCustomToolResult:
			answered = true
		case api.EventSessionIdle:
			if !strings.Contains(string(e.Fields), api.StopRequiresAction) {
				s.open, answered = control.EventRecord{}, false
			}
		}
	}
	if s.open.ID != "" && answered {
		return true, s.say(nil, "The tool has answered.")
	}
	for _, e := range queue {
		switch {
		case e.Type == api.EventUserInterrupt:
			return true, s.commit(append(s.begin(), append([]control.EventRecord{e}, s.end(api.StopReason{Type: api.StopEndTurn})...)...))
		case e.Type == api.EventUserToolConfirmation:
			return true, s.confirmed(e)
		}
	}
	if s.open.ID != "" || len(queue) == 0 || rec.Status == api.SessionRunning && took {
		return false, nil // it waits, or hangs
	}
	return true, s.told(queue[0])
}

// event makes an event.
func (s *scene) event(kind string, fields any) control.EventRecord {
	e := control.EventRecord{ID: s.p.turns.EventID(), Type: kind}
	if fields != nil {
		e.Fields, _ = json.Marshal(fields) // api's structs always encode
	}
	return e
}

func (s *scene) commit(events []control.EventRecord) error {
	rec, made, err := s.p.turns.Commit(s.p.ctx, control.Step{Workspace: s.rec.Workspace, Session: s.rec.ID, After: s.last, Events: events})
	if err == nil {
		s.rec, s.last = rec, made[len(made)-1].Seq
	}
	return err
}

// begin makes the session run, unless it does.
func (s *scene) begin() []control.EventRecord {
	if s.rec.Status == api.SessionRunning {
		return nil
	}
	return []control.EventRecord{s.event(api.EventSessionRunning, nil), s.event(api.EventThreadRunning, s.thread)}
}

// end makes the session idle.
func (s *scene) end(why api.StopReason) []control.EventRecord {
	idle := api.IdleFields{StopReason: why}
	return []control.EventRecord{
		s.event(api.EventThreadIdle, api.ThreadIdleFields{ThreadFields: s.thread, IdleFields: idle}),
		s.event(api.EventSessionUsage, nil),
		s.event(api.EventSessionIdle, idle),
	}
}

func text(s string) []json.RawMessage {
	block, _ := json.Marshal(api.TextBlock{Type: "text", Text: s}) // strings always encode
	return []json.RawMessage{block}
}

// told answers a message.
func (s *scene) told(e control.EventRecord) error {
	first := append(s.begin(), e)
	var message api.MessageFields
	if err := json.Unmarshal(e.Fields, &message); err != nil {
		return err
	}
	said := ""
	for _, raw := range message.Content {
		var block api.TextBlock
		if err := json.Unmarshal(raw, &block); err != nil {
			return err
		}
		said += block.Text
	}
	use := api.ToolUseFields{Name: "bash", Input: json.RawMessage(`{"command":"true"}`), EvaluatedPermission: "ask",
		Evaluation: &api.ToolEvaluation{Type: "always_ask"}}
	switch {
	case e.Type == api.EventSystemMessage:
		return s.commit(append(first, s.end(api.StopReason{Type: api.StopEndTurn})...))
	case said == "hang":
		return s.commit(first)
	case said == "ask":
		return s.uses(first, s.event(api.EventAgentToolUse, use))
	case said == "custom":
		return s.uses(first, s.event(api.EventAgentCustomToolUse, api.ToolUseFields{Name: "lookup", Input: json.RawMessage(`{"key":"k"}`)}))
	case said == "fail":
		return s.fails(first)
	}
	return s.say(first, "You said: "+said)
}

// uses uses a tool and waits.
func (s *scene) uses(first []control.EventRecord, use control.EventRecord) error {
	return s.commit(append(append(first, use), s.end(api.StopReason{Type: api.StopRequiresAction, EventIDs: []string{use.ID}})...))
}

func (s *scene) fails(first []control.EventRecord) error {
	trouble := func(retry string) control.EventRecord {
		return s.event(api.EventSessionError, api.ErrorFields{Error: api.SessionError{Type: api.ErrorModelOverloaded,
			Message: "Overloaded", RetryStatus: api.RetryStatus{Type: retry}}})
	}
	if err := s.commit(append(first, trouble(api.RetryRetrying), s.event(api.EventThreadRescheduled, s.thread), s.event(api.EventSessionRescheduled, nil))); err != nil {
		return err
	}
	again := append(s.begin(), trouble(api.RetryExhausted))
	return s.commit(append(again, s.end(api.StopReason{Type: api.StopRetriesExhausted})...))
}

// confirmed runs the tool that was confirmed, or does not.
func (s *scene) confirmed(e control.EventRecord) error {
	var c api.ConfirmationFields
	if err := json.Unmarshal(e.Fields, &c); err != nil {
		return err
	}
	denied := c.Result == "deny"
	out := text("ran")
	if denied {
		out = text("denied")
	}
	result := s.event(api.EventAgentToolResult, api.ToolResultFields{ToolUseID: c.ToolUseID, Content: out, IsError: &denied})
	return s.say(append(s.begin(), e, result), "It was "+c.Result+".")
}

// say makes a model request that says something in three pieces, and ends the
// turn.
func (s *scene) say(first []control.EventRecord, words string) error {
	start := s.event(api.EventModelRequestStart, nil)
	if err := s.commit(append(first, start)); err != nil {
		return err
	}
	message := s.event(api.EventAgentMessage, api.MessageFields{Content: text(words)})
	turns, id := s.p.turns, s.rec.ID
	turns.PreviewStart(id, api.EventPreview{Type: message.Type, ID: message.ID})
	third := len(words) / 3
	for _, piece := range []string{words[:third], words[third : 2*third], words[2*third:]} {
		turns.PreviewText(id, message.ID, 0, piece)
	}
	fine := false
	span := s.event(api.EventModelRequestEnd, api.ModelRequestEndFields{IsError: &fine, ModelRequestStartID: start.ID,
		ModelUsage: api.ModelUsage{InputTokens: 10, OutputTokens: 5, CacheReadInputTokens: 3, CacheCreationInputTokens: 2}})
	return s.commit(append([]control.EventRecord{message, span}, s.end(api.StopReason{Type: api.StopEndTurn})...))
}
