package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/control"
)

// run is what happens for one session while it has something to do. Only its
// own goroutine touches what follows cancel.
type run struct {
	runner        *Runner
	turns         *control.Turns
	workspace, id string
	wake          chan struct{} // room for one: there is something new
	done          chan struct{} // closed when loop has returned
	ctx           context.Context
	cancel        context.CancelFunc

	rec    control.SessionRecord
	agent  api.SessionAgent
	thread api.ThreadFields
	conv   conversation
	queue  []control.EventRecord
	open   Tools // nil until they are needed
	tools  []toolset.Tool
	told   map[string]bool // MCP servers whose failure was said in this run
}

// patience is how long a failing store is waited for between tries.
const patience = time.Second

// loop works until nothing is left to do.
func (r *run) loop() {
	defer close(r.done)
	defer r.cancel()
	defer r.closeTools()
	for {
		select {
		case <-r.wake:
		default:
		}
		again, err := r.guarded()
		switch {
		case err == nil && again, errors.Is(err, control.ErrStale):
			continue
		case err == nil, errors.Is(err, errGone), r.ctx.Err() != nil:
			if r.runner.finish(r) {
				return
			}
			continue
		}
		r.runner.log.ErrorContext(r.ctx, "a step of an agent failed", "session_id", r.id, "error", err)
		select {
		case <-time.After(patience):
		case <-r.ctx.Done():
		}
	}
}

// guarded is step; a panic is an error of this session alone.
func (r *run) guarded() (again bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.conv = conversation{} // to be read anew
			again, err = false, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return r.step()
}

// refresh reads what is new in the log and what is queued.
func (r *run) refresh() error {
	rec, log, queue, err := r.turns.Load(r.ctx, r.workspace, r.id, r.conv.last)
	switch {
	case errors.Is(err, control.ErrNoRecord):
		return errGone
	case err != nil:
		return fmt.Errorf("reading the session: %w", err)
	case !rec.ArchivedAt.IsZero():
		return errGone
	}
	for _, e := range log {
		if err := r.conv.apply(e); err != nil {
			return err
		}
	}
	r.queue = queue
	return r.note(rec)
}

// note takes over the session's row; tools follow the agent.
func (r *run) note(rec control.SessionRecord) (err error) {
	changed := !rec.UpdatedAt.Equal(r.rec.UpdatedAt) || r.rec.ID == ""
	r.rec = rec
	if !changed {
		return nil
	}
	was := mustJSON(r.agent)
	if r.agent, err = control.SessionAgent(rec); err != nil {
		return err
	}
	if string(was) != string(mustJSON(r.agent)) {
		r.closeTools()
	}
	r.thread, err = control.SessionThread(rec)
	return err
}

// commit makes one step durable and follows it.
func (r *run) commit(events ...control.EventRecord) error {
	rec, made, err := r.turns.Commit(r.ctx, control.Step{Workspace: r.workspace, Session: r.id, After: r.conv.last, Events: events})
	switch {
	case errors.Is(err, control.ErrNoRecord), errors.Is(err, control.ErrEnded):
		return errGone
	case err != nil:
		return fmt.Errorf("writing a step: %w", err)
	}
	for _, e := range made {
		if e.Seq == 0 {
			continue
		}
		if err := r.conv.apply(e); err != nil {
			return err
		}
	}
	return r.note(rec)
}

// record makes a step of what has happened, which stays true whatever entered the
// log meanwhile (the session's title was changed, a custom tool was answered).
func (r *run) record(events ...control.EventRecord) error {
	for {
		err := r.commit(events...)
		if !errors.Is(err, control.ErrStale) {
			return err
		}
		if err := r.refresh(); err != nil {
			return err
		}
	}
}

// queued are the events of a type that wait.
func (r *run) queued(kinds ...string) (found []control.EventRecord) {
	for _, e := range r.queue {
		for _, kind := range kinds {
			if e.Type == kind {
				found = append(found, e)
			}
		}
	}
	return found
}

// step does the next thing that the log and the queue ask for, and tells
// whether there may be more. Whatever it decides it writes down in one commit.
func (r *run) step() (again bool, err error) {
	if err := r.refresh(); err != nil {
		return false, err
	}
	if r.conv.status == api.SessionTerminated {
		return false, nil
	}
	if stops := r.queued(api.EventUserInterrupt); len(stops) > 0 {
		return true, r.interrupt(nil)
	}
	if answers := r.queued(api.EventUserToolConfirmation); len(answers) > 0 {
		return true, r.takeAnswers(answers)
	}
	if len(r.conv.open()) > 0 {
		return r.stepTools()
	}
	return r.stepModel()
}

// takeAnswers takes confirmations into the log. A session that waits goes on when
// it has all that it waits for, and says what is left otherwise.
func (r *run) takeAnswers(answers []control.EventRecord) error {
	if r.conv.status != api.SessionIdle || len(r.conv.waiting) == 0 {
		return r.commit(answers...)
	}
	left, err := control.StillWaiting(r.conv.waiting, answers)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return r.commit(append(answers, r.waitFor(left)...)...)
	}
	return r.commit(append(r.running(), answers...)...)
}

// waitFor are the events that let a turn wait for answers to uses.
func (r *run) waitFor(uses []string) []control.EventRecord {
	return r.idle(api.StopReason{Type: api.StopRequiresAction, EventIDs: uses}, nil)
}

// stepTools brings the open tool uses further. While the session waits for answers
// nothing runs.
func (r *run) stepTools() (again bool, err error) {
	asked := r.conv.asked()
	if r.conv.status == api.SessionIdle && len(r.conv.waiting) > 0 && len(asked) > 0 {
		if slices.Equal(asked, r.conv.waiting) {
			return false, nil
		}
		return true, r.commit(r.waitFor(asked)...)
	}
	if u := r.conv.runnable(); u != nil {
		if r.conv.status != api.SessionRunning {
			return true, r.commit(r.running()...)
		}
		return true, r.runTool(u)
	}
	return false, r.commit(r.waitFor(asked)...)
}

// stepModel asks the model, or ends the turn.
func (r *run) stepModel() (again bool, err error) {
	c := &r.conv
	input := r.queued(api.EventUserMessage, api.EventSystemMessage)
	if c.request != "" {
		return true, r.commit(r.requestEnd(api.ModelUsage{}, true, nil)) // cut off by the end of a server
	}
	if c.fresh && len(input) == 0 {
		return false, nil // what the turn begins with was sent by now, and is seen next
	}
	inTurn := c.status == api.SessionRunning || c.status == api.SessionRescheduling
	answered := len(c.waiting) > 0 // the turn waited for answers, and has them all
	ended := c.stop != "" && len(c.uses) == 0 && c.stop != stopPauseTurn
	switch {
	case inTurn && ended && len(input) == 0:
		return true, r.endTurn()
	case !inTurn && !answered && len(input) == 0:
		return false, nil
	}
	return true, r.ask(input)
}

// endTurn goes idle with the reason of the model's last reply.
func (r *run) endTurn() error {
	reason := api.StopReason{Type: api.StopEndTurn}
	if r.conv.stop == stopRefusal {
		reason.Type = api.StopRefusal
	}
	return r.commit(r.idle(reason, r.conv.details)...)
}

// interrupt ends the turn: what is open is closed, and the session is idle.
// Messages that wait are not lost with it, they begin the next turn. Where there
// is no turn, or one that has taken nothing yet, the one that the messages before
// the interrupt would begin is ended, so that it does not matter how soon they
// were taken. first are events that have to come before.
func (r *run) interrupt(first []control.EventRecord) error {
	events := slices.Clone(first)
	isEnd := func(e control.EventRecord) bool { return e.Type == api.EventModelRequestEnd }
	if r.conv.request != "" && !slices.ContainsFunc(events, isEnd) {
		events = append(events, r.requestEnd(api.ModelUsage{}, true, nil))
	}
	inTurn := r.conv.status != api.SessionIdle && r.conv.status != "" || len(r.conv.waiting) > 0
	taken := r.queue
	for taken[len(taken)-1].Type != api.EventUserInterrupt {
		taken = taken[:len(taken)-1]
	}
	isMessage := func(e control.EventRecord) bool {
		return e.Type == api.EventUserMessage || e.Type == api.EventSystemMessage
	}
	begun := slices.ContainsFunc(taken, isMessage) // by what stands before the interrupt
	switch {
	case r.conv.fresh:
		inTurn = begun // otherwise the turn is that of what stands behind it
	case inTurn:
		taken = slices.DeleteFunc(slices.Clone(taken), isMessage)
	case begun:
		events, inTurn = append(events, r.running()...), true
	}
	events = append(events, taken...)
	if inTurn {
		events = append(events, r.idle(api.StopReason{Type: api.StopEndTurn}, nil)...)
	}
	return r.record(events...)
}

// interrupted tells whether an interrupt waits; the queue is read anew.
func (r *run) interrupted() bool {
	if r.refresh() != nil {
		return false // found again by the next step
	}
	return len(r.queued(api.EventUserInterrupt)) > 0
}

// watch waits for the end of work. When the user interrupts, stop is called, and
// its error returned at once; work has to end soon after it.
func (r *run) watch(work func(), stop func() error) (stopped bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	for {
		select {
		case <-done:
			return false, nil
		case <-r.wake:
			if !r.interrupted() {
				continue
			}
			if err := stop(); err != nil {
				return true, err
			}
			<-done
			return true, nil
		}
	}
}
