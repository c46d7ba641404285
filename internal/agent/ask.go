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

// maxUnusable is how many replies in a row may have calls of which none is fit to
// run: cut off at the model's output limit, or with an input that is no object.
const maxUnusable = 5

// overLimit says which limit of a turn is reached, or nothing.
func (r *run) overLimit() string {
	switch c := &r.conv; {
	case c.requests >= r.runner.config.MaxRequests:
		return fmt.Sprintf("The turn was ended after %d model requests, which is the limit. Send a message to go on.", c.requests)
	case c.unusable >= maxUnusable:
		return fmt.Sprintf("The turn was ended after %d replies in a row whose tool calls were cut off or could not be read, which is the limit. "+
			"None of these calls ran. Send a message to go on.", c.unusable)
	}
	return ""
}

// ask makes one model request with what was queued, and writes down what came
// of it.
func (r *run) ask(input []control.EventRecord) error {
	c := &r.conv
	var begin []control.EventRecord
	if c.status != api.SessionRunning {
		// After a restart nothing is known of the wait before another try; it is over then.
		begin = r.running()
	}
	if r.runner.config.Model == nil {
		return r.giveUp(append(begin, input...), api.ErrorModelRequest,
			"No model is configured on this server: its operator has to set model.base_url.")
	}
	if over := r.overLimit(); over != "" && len(begin) == 0 {
		return r.giveUp(input, api.ErrorToolUseLimit, over)
	}
	missing, err := r.openTools()
	switch {
	case errors.Is(err, errInterrupted):
		return r.interrupt(nil)
	case err != nil:
		return err
	}
	begin = slices.Concat(begin, r.serversFailed(missing), input)
	if c.needsCompaction(r.runner.config.Model) {
		return r.compact(begin, missing)
	}
	paused := c.stop == stopPauseTurn // the model goes on from its own words
	if err := r.commit(append(begin, r.event(api.EventModelRequestStart, nil))...); err != nil {
		return err
	}
	r.markTold(missing)
	if n := len(c.messages); n == 0 || c.messages[n-1].Role == "assistant" && !paused {
		end := r.requestEnd(api.ModelUsage{}, true, nil)
		return r.giveUp([]control.EventRecord{end}, api.ErrorUnknown, "The conversation has nothing for the model to answer.")
	}
	rep, ids, err := r.request(r.modelRequest(), true)
	if err != nil {
		return r.requestFailed(err, rep.usage)
	}
	if rep.stop == stopWindowIsFull {
		return r.tooLong(rep.usage)
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
		return reply{usage: rep.usage}, nil, errInterrupted
	}
	if err != nil && r.ctx.Err() != nil {
		err = r.ctx.Err()
	}
	return rep, p.ids, err
}

// preview announces the events that a reply will become.
type preview struct {
	run  *run
	ids  map[int]string // index of the block that began an event → its id
	open string         // id of the message that further text joins; empty: none is open
	at   int            // index of the block whose text was shown last
	nth  int            // which block of the open message that is, from 0
}

func (p *preview) show(x piece) {
	turns, session := p.run.turns, p.run.id
	if x.kind != "text" {
		p.open = ""
		if x.kind == "thinking" || x.kind == "redacted_thinking" {
			p.ids[x.index] = turns.EventID()
			turns.PreviewStart(session, api.EventPreview{Type: api.EventAgentThinking, ID: p.ids[x.index]})
		}
		return
	}
	switch {
	case x.text == "":
		return // a block that stays empty becomes nothing
	case p.open == "":
		p.open, p.at, p.nth = turns.EventID(), x.index, 0
		p.ids[x.index] = p.open
		turns.PreviewStart(session, api.EventPreview{Type: api.EventAgentMessage, ID: p.open})
	case p.at != x.index:
		p.at, p.nth = x.index, p.nth+1
	}
	turns.PreviewText(session, p.open, p.nth, x.text)
}

// requestFailed writes down that the open request failed, and waits for the next
// try, or ends the turn. used are the tokens that the endpoint counted until then.
func (r *run) requestFailed(err error, used api.ModelUsage) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err() // the next server makes it again
	case errors.Is(err, errInterrupted):
		return r.interrupt([]control.EventRecord{r.requestEnd(used, true, nil)})
	}
	f := classify(err)
	r.runner.log.WarnContext(r.ctx, "model request failed", "session_id", r.id, "kind", f.kind, "try", r.conv.failed+1, "error", err)
	if f.tooLong {
		return r.tooLong(used)
	}
	end := r.requestEnd(used, true, nil)
	if !f.retry || r.conv.failed >= r.runner.config.MaxRetries {
		return r.giveUp([]control.EventRecord{end}, f.kind, f.message)
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
func (r *run) giveUp(first []control.EventRecord, kind, message string) error {
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
	return r.record(append(events, r.idle(api.StopReason{Type: api.StopRetriesExhausted}, nil)...)...)
}
