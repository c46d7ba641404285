package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// ask makes one model request with what was queued, and writes down what came
// of it.
func (r *run) ask(input []control.EventRecord) error {
	c := &r.conv
	var begin []control.EventRecord
	if c.status == "" || c.status == api.SessionIdle {
		begin = r.running()
	}
	switch {
	case r.runner.config.Model == nil:
		return r.giveUp(append(begin, input...), api.ErrorModelRequest,
			"No model is configured on this server: its operator has to set model.base_url.", api.StopRetriesExhausted)
	case c.status == api.SessionRescheduling:
		// After a restart nothing is known of the wait; it is over then.
		begin = r.running()
	}
	if c.requests >= r.runner.config.MaxRequests && len(begin) == 0 {
		return r.giveUp(input, api.ErrorToolUseLimit, fmt.Sprintf("The turn was ended after %d model requests.", c.requests), api.StopEndTurn)
	}
	switch err := r.openTools(); {
	case errors.Is(err, errInterrupted):
		return r.interrupt(nil)
	case err != nil:
		return err
	}
	if c.needsCompaction(r.runner.config.Model) {
		return r.compact(append(begin, input...))
	}
	paused := c.stop == "pause_turn" // the model goes on from its own words
	if err := r.commit(append(append(begin, input...), r.event(api.EventModelRequestStart, nil))...); err != nil {
		return err
	}
	if n := len(c.messages); n == 0 || c.messages[n-1].Role == "assistant" && !paused {
		end := r.requestEnd(api.ModelUsage{}, true, nil)
		return r.giveUp([]control.EventRecord{end}, api.ErrorUnknown, "The conversation has nothing for the model to answer.", api.StopEndTurn)
	}
	rep, ids, err := r.request(r.modelRequest(), true)
	if err != nil {
		return r.requestFailed(err)
	}
	if rep.stop == "model_context_window_exceeded" {
		return r.tooLong()
	}
	events := r.replyEvents(rep, ids)
	if rep.leftOut != "" {
		told := r.failure(api.ErrorModelRequest, "The agent goes on without the images and documents of the last message, because the model's endpoint refused them: "+rep.leftOut, api.RetryRetrying)
		events = append([]control.EventRecord{told}, events...)
	}
	return r.record(events...)
}

func (r *run) modelRequest() request {
	req := request{model: r.agent.Model, messages: r.conv.messages, tools: r.tools}
	if r.agent.System != nil && strings.TrimSpace(*r.agent.System) != "" {
		req.system = *r.agent.System
	}
	return req
}

// errInterrupted: the user interrupted.
var errInterrupted = errors.New("interrupted")

// request makes a model request and shows the reply as it comes. It answers the
// ids of the events that were announced, by the index of the block that began
// them. An interrupt ends it.
func (r *run) request(req request, show bool) (reply, map[int]string, error) {
	ctx, stop := context.WithCancelCause(r.ctx)
	defer stop(nil)
	p := preview{run: r, ids: map[int]string{}}
	var rep reply
	var err error
	work := func() {
		rep, err = r.runner.config.Model.stream(ctx, req, func(x piece) {
			if show {
				p.show(x)
			}
		})
	}
	if stopped, _ := r.watch(work, func() error { stop(errInterrupted); return nil }); stopped {
		return reply{}, nil, errInterrupted
	}
	if err != nil && r.ctx.Err() != nil {
		err = r.ctx.Err()
	}
	return rep, p.ids, err
}

// preview announces the events that a reply will become.
type preview struct {
	run   *run
	ids   map[int]string // index of the block that began an event → its id
	first int            // index of the block that began the open message
	open  bool           // a message is open
}

func (p *preview) show(x piece) {
	turns, session := p.run.turns, p.run.id
	switch {
	case x.begin && x.kind == "text":
		if !p.open {
			p.open, p.first = true, x.index
			p.ids[x.index] = turns.EventID()
			turns.PreviewStart(session, api.EventPreview{Type: api.EventAgentMessage, ID: p.ids[x.index]})
		}
		if x.text != "" {
			turns.PreviewText(session, p.ids[p.first], x.index-p.first, x.text)
		}
	case x.begin:
		p.open = false
		if x.kind == "thinking" || x.kind == "redacted_thinking" {
			p.ids[x.index] = turns.EventID()
			turns.PreviewStart(session, api.EventPreview{Type: api.EventAgentThinking, ID: p.ids[x.index]})
		}
	case p.open && x.text != "":
		turns.PreviewText(session, p.ids[p.first], x.index-p.first, x.text)
	}
}

// requestFailed writes down that the open request failed, and waits for the next
// try, or ends the turn.
func (r *run) requestFailed(err error) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err() // the next server makes it again
	case errors.Is(err, errInterrupted):
		return r.interrupt(nil)
	}
	f := classify(err)
	r.runner.log.WarnContext(r.ctx, "model request failed", "session_id", r.id, "kind", f.kind, "try", r.conv.failed+1, "error", err)
	if f.tooLong {
		return r.tooLong()
	}
	end := r.requestEnd(api.ModelUsage{}, true, nil)
	if !f.retry || r.conv.failed >= r.runner.config.MaxRetries {
		return r.giveUp([]control.EventRecord{end}, f.kind, f.message, api.StopRetriesExhausted)
	}
	err = r.record(end, r.failure(f.kind, f.message, api.RetryRetrying),
		r.event(api.EventThreadRescheduled, r.thread), r.event(api.EventSessionRescheduled, nil))
	if err != nil {
		return err
	}
	return r.pause(backoff(r.runner.config.RetryBase, r.conv.failed, f.after))
}

// pause waits before the next try, or until an interrupt.
func (r *run) pause(wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return nil
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-r.wake:
			if r.interrupted() {
				return nil // the next step sees it
			}
		}
	}
}

// giveUp ends the turn with an error. What was queued by then is dead with it:
// it enters the log unanswered.
func (r *run) giveUp(first []control.EventRecord, kind, message, reason string) error {
	if err := r.refresh(); err != nil {
		return err
	}
	events := slices.Clone(first)
	for _, e := range r.queued(api.EventUserMessage, api.EventSystemMessage) {
		if !slices.ContainsFunc(events, func(x control.EventRecord) bool { return x.ID == e.ID }) {
			events = append(events, e)
		}
	}
	events = append(events, r.failure(kind, message, api.RetryExhausted))
	return r.record(append(events, r.idle(api.StopReason{Type: reason}, nil)...)...)
}
