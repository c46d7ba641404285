package control

import (
	"context"
	"encoding/json"
	"time"
)

// EventRecord is one event of a session. An input event waits in the session's
// queue until the agent loop takes it into the log; every other event is in the
// log from the start. The log is append-only and ordered by Seq: lists and
// streams show it in that order.
type EventRecord struct {
	Session string
	// Seq is the place in the log, from 1 without gaps; 0 while queued.
	Seq int64
	// ID is unique, "sevt_…"; Type is one of the wire's.
	ID, Type string
	// CreatedAt is when it came. ProcessedAt is when it entered the log: strictly
	// later than that of the event before it; zero while queued.
	CreatedAt, ProcessedAt time.Time
	// Fields are a JSON object with all that the wire shows beside type, id and
	// processed_at.
	Fields []byte
	// Private is JSON that never leaves the server, or nil: what the agent loop
	// keeps beside an event, like the model's own blocks and their signatures.
	Private []byte
}

// Wire is the event as clients see it.
func (e EventRecord) Wire() json.RawMessage {
	head, err := json.Marshal(struct {
		Type        string  `json:"type"`
		ID          string  `json:"id"`
		ProcessedAt *string `json:"processed_at"`
	}{e.Type, e.ID, eventTime(e.ProcessedAt)})
	if err != nil {
		panic("control: an event's head: " + err.Error()) // strings only
	}
	if len(e.Fields) <= len("{}") {
		return head
	}
	return append(append(head[:len(head)-1], ','), e.Fields[1:]...)
}

func eventTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	text := t.UTC().Format("2006-01-02T15:04:05.000000Z")
	return &text
}

// Step is one atomic change of a session's log: all of it is durable, or none.
type Step struct {
	Session string
	// After is the Seq of the last event that the caller has seen; ErrStale when
	// the log has grown since, so that a decision is never made on an old log.
	After int64
	// Events enter the log in this order. One whose ID is in the queue is taken
	// from there (its Fields are kept); others are new.
	Events []EventRecord
	// Change alters the session's row in the same transaction (status, usage in
	// the document); nil leaves it. It must not call the store.
	Change func(*SessionRecord) error
}

// EventFilter selects events of a log. Zero values do not filter. Times are
// compared with ProcessedAt.
type EventFilter struct {
	Types                                        []string
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
}

// EventStore keeps events. What a method acknowledged is durable.
type EventStore interface {
	// QueueEvents appends input events to a session's queue in order, all or
	// none. check is given the session and what is queued already, in the same
	// transaction; its error refuses all and is returned as it is. It answers
	// the events that go straight into the log (see Direct) separately.
	QueueEvents(ctx context.Context, workspace, session string, check func(rec SessionRecord, queued []EventRecord, last int64) (queue, direct []EventRecord, err error)) (SessionRecord, []EventRecord, error)
	// CommitStep makes a Step. ErrStale when the log is not at Step.After,
	// ErrNoRecord when the session or a queued event is gone. It answers the
	// events as they stand in the log, with Seq and ProcessedAt.
	CommitStep(ctx context.Context, step Step) (SessionRecord, []EventRecord, error)
	// Events lists the log of a session in the order of Seq (descending when
	// asked), beginning after (or before) the given Seq, at most limit.
	Events(ctx context.Context, session string, filter EventFilter, after int64, descending bool, limit int) ([]EventRecord, bool, error)
	// QueuedEvents lists what waits, in the order of arrival.
	QueuedEvents(ctx context.Context, session string) ([]EventRecord, error)
	// ActiveSessions calls each for every session that is not archived and that
	// runs, is rescheduled or has queued events: what a server that was killed
	// has to take up.
	ActiveSessions(ctx context.Context, each func(SessionRecord) error) error
}

// Loop runs agents: it is told when a session has something new. internal/agent
// implements it.
type Loop interface {
	// Wake tells that events were queued or answered. It does not wait.
	Wake(rec SessionRecord)
	// Ended tells that the session was archived or deleted: what runs for it is
	// ended before Ended returns.
	Ended(ctx context.Context, session string) error
}
