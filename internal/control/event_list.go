package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
)

// A page of events ends early when it has this many bytes, so that a reply stays
// within what clients and server can hold.
const maxEventPage = 8 << 20

// EventQuery asks for a page of a session's events.
type EventQuery struct {
	Limit api.Opt[int] // 1–1000, 1000 when absent
	// Page is the cursor of an earlier page; empty for the first.
	Page  string
	Order string // asc or desc; empty is asc
	// Types are the only ones to list; nil lists all.
	Types []string
	// The bounds hold for the time at which an event entered the log; zero does not bound.
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
}

// eventTypes are the types that the API knows, those that Atoll does not emit
// included: a client may filter by any of them.
var eventTypes = []string{
	api.EventUserMessage, api.EventUserInterrupt, api.EventUserToolConfirmation, api.EventUserCustomToolResult, api.EventSystemMessage,
	api.EventAgentMessage, api.EventAgentThinking, api.EventAgentToolUse, api.EventAgentToolResult, api.EventAgentMCPToolUse,
	api.EventAgentMCPToolResult, api.EventAgentCustomToolUse, api.EventContextCompacted,
	api.EventSessionRunning, api.EventSessionIdle, api.EventSessionRescheduled, api.EventSessionTerminated, api.EventSessionError,
	api.EventSessionUpdated, api.EventSessionUsage, api.EventThreadCreated, api.EventThreadRunning, api.EventThreadIdle,
	api.EventThreadRescheduled, api.EventThreadTerminated, api.EventModelRequestStart, api.EventModelRequestEnd,
	"user.define_outcome", "user.tool_result", "agent.thread_message_received", "agent.thread_message_sent",
	"span.outcome_evaluation_start", "span.outcome_evaluation_end", "span.outcome_evaluation_ongoing",
	"workflow_run.created", "workflow_run.status_running", "workflow_run.status_idle", "workflow_run.status_ended",
	"workflow_run.error", "workflow_run.phase_started", "workflow_run.phase_ended",
}

func (q EventQuery) filter() (EventFilter, error) {
	f := EventFilter{CreatedGT: q.CreatedGT, CreatedGTE: q.CreatedGTE, CreatedLT: q.CreatedLT, CreatedLTE: q.CreatedLTE}
	if q.Order != "" && q.Order != "asc" && q.Order != "desc" {
		return f, badField("order", "Input should be 'asc' or 'desc'")
	}
	for i, name := range q.Types {
		if !slices.Contains(eventTypes, name) {
			return f, badField(fmt.Sprintf("types[%d]", i), "%s is not a type of event", printable(name))
		}
	}
	f.Types = slices.Compact(slices.Sorted(slices.Values(q.Types)))
	return f, nil
}

// timed tells whether a filter asks for a time, which queued events do not have.
func (f EventFilter) timed() bool {
	return !f.CreatedGT.IsZero() || !f.CreatedGTE.IsZero() || !f.CreatedLT.IsZero() || !f.CreatedLTE.IsZero()
}

// ListEvents lists a session's log, oldest event first unless asked otherwise,
// and behind it, as the newest, what waits in its queue. Going from page to page
// shows each event once, also when events enter the log meanwhile.
func (s *Service) ListEvents(ctx context.Context, caller Caller, id string, q EventQuery) (api.List[json.RawMessage], error) {
	list := api.List[json.RawMessage]{Data: []json.RawMessage{}}
	if !q.Limit.Set {
		q.Limit = api.Some(1000)
	}
	limit, err := pageLimit(q.Limit, 1000)
	if err != nil {
		return list, err
	}
	filter, err := q.filter()
	if err != nil {
		return list, err
	}
	scope := cursorScope("events", caller, []any{id, filter, q.Order == "desc"})
	from, err := readCursor(q.Page, scope)
	if err != nil {
		return list, err
	}
	if _, err := s.store.Session(ctx, caller.Workspace, id); err != nil {
		return list, sessionFault(id, err)
	}
	walk := eventWalk{store: s.store, session: id, filter: filter, limit: limit}
	read := walk.forward
	if q.Order == "desc" {
		read = walk.backward
	}
	events, next, err := read(ctx, from)
	if err != nil {
		return list, err
	}
	for _, e := range events {
		list.Data = append(list.Data, e.Wire())
	}
	if next != nil {
		next.Scope = scope
		text := next.String()
		list.NextPage = &text
	}
	return list, nil
}

// eventWalk reads one page of the log and the queue as one list.
type eventWalk struct {
	store   EventStore
	session string
	filter  EventFilter
	limit   int
}

// queue is what waits and is asked for, in the order of arrival.
func (w eventWalk) queue(ctx context.Context) ([]EventRecord, error) {
	if w.filter.timed() {
		return nil, nil
	}
	queue, err := w.store.QueuedEvents(ctx, w.session)
	return slices.DeleteFunc(queue, func(e EventRecord) bool {
		return len(w.filter.Types) > 0 && !slices.Contains(w.filter.Types, e.Type)
	}), err
}

// forward goes on behind the event from.Seq of the log, and behind from.Place of
// the queue. An event that was shown while it waited has a place up to that one,
// and is not shown again when it has entered the log.
func (w eventWalk) forward(ctx context.Context, from cursor) ([]EventRecord, *cursor, error) {
	queue, err := w.queue(ctx) // first: an event goes from there to the log
	if err != nil {
		return nil, nil, err
	}
	events, more, err := w.store.Events(ctx, w.session, w.filter, EventPage{After: from.Seq, Limit: w.limit, Bytes: maxEventPage})
	if err != nil {
		return nil, nil, err
	}
	next := cursor{Seq: from.Seq, Place: from.Place}
	if len(events) > 0 {
		next.Seq = events[len(events)-1].Seq
	}
	events = slices.DeleteFunc(events, func(e EventRecord) bool { return e.Place > 0 && e.Place <= from.Place })
	if more {
		return events, &next, nil
	}
	taken := map[string]bool{}
	for _, e := range events {
		taken[e.ID] = true
	}
	queue = slices.DeleteFunc(queue, func(e EventRecord) bool { return e.Place <= from.Place || taken[e.ID] })
	waiting, left := w.fill(queue, len(events))
	if len(waiting) > 0 {
		next.Place = waiting[len(waiting)-1].Place
	}
	if left {
		return append(events, waiting...), &next, nil
	}
	return append(events, waiting...), nil, nil
}

// fill takes as many as a page that has so many events has room for; an empty
// page has room for one, however large it is.
func (w eventWalk) fill(queue []EventRecord, have int) (taken []EventRecord, left bool) {
	size := 0
	for i, e := range queue {
		if have+i > 0 && (have+i >= w.limit || size > maxEventPage) {
			return queue[:i], true
		}
		size += len(e.Fields)
	}
	return queue, false
}

// backward shows the queue from its end, then the log from the event that was
// its newest when the first page was made (from.Edge). What has entered the log
// since is shown only if it would have been met in the queue.
func (w eventWalk) backward(ctx context.Context, from cursor) (events []EventRecord, _ *cursor, err error) {
	next := from
	if from.Seq == 0 {
		queue, edge, err := w.settled(ctx)
		if err != nil {
			return nil, nil, err
		}
		if from.Place == 0 {
			next.Edge = edge
		}
		slices.Reverse(queue)
		queue = slices.DeleteFunc(queue, func(e EventRecord) bool { return from.Place > 0 && e.Place >= from.Place })
		var left bool
		events, left = w.fill(queue, 0)
		if len(events) > 0 {
			next.Place = events[len(events)-1].Place
		}
		if left || len(events) >= w.limit {
			return events, &next, nil
		}
	}
	log, more, err := w.store.Events(ctx, w.session, w.filter,
		EventPage{After: from.Seq, Descending: true, Limit: w.limit - len(events), Bytes: maxEventPage})
	if err != nil {
		return nil, nil, err
	}
	if len(log) > 0 {
		next.Seq = log[len(log)-1].Seq
	}
	log = slices.DeleteFunc(log, func(e EventRecord) bool {
		return e.Seq > next.Edge && (e.Place == 0 || e.Place >= next.Place)
	})
	if more {
		return append(events, log...), &next, nil
	}
	return append(events, log...), nil, nil
}

// settled reads the queue and the newest event of the log as they were at one
// moment: nothing has left the queue while the log did not grow.
func (w eventWalk) settled(ctx context.Context) (queue []EventRecord, edge int64, err error) {
	for range 50 {
		if edge, err = w.store.LastEvent(ctx, w.session); err != nil {
			return nil, 0, err
		}
		if queue, err = w.queue(ctx); err != nil {
			return nil, 0, err
		}
		again, err := w.store.LastEvent(ctx, w.session)
		if err != nil || again == edge {
			return queue, edge, err
		}
	}
	return nil, 0, Faultf(Unavailable, "Session %s is too busy; try again", printable(w.session))
}
