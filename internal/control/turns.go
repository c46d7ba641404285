package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atoll-run/atoll/api"
)

// EventRecord is one event of a session. An input event waits in the session's
// queue until the agent loop takes it into the log; every other event is in the
// log from the start. The log is append-only and ordered by Seq: lists and
// streams show it in that order.
type EventRecord struct {
	// Session is the id of the session that the event belongs to.
	Session string
	// Seq is the place in the log, from 1 without gaps; 0 while queued. Place is
	// the place in the queue, growing and never used again; 0 for an event that
	// never was queued.
	Seq, Place int64
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

// EventFilter selects events of a log. Zero values do not filter. Times are
// compared with ProcessedAt.
type EventFilter struct {
	// Types are the only ones to take; nil takes all.
	Types []string
	// The bounds hold for ProcessedAt.
	CreatedGT, CreatedGTE, CreatedLT, CreatedLTE time.Time
}

// EventPage asks for one page of a log in the order of Seq, or against it.
type EventPage struct {
	// After is the Seq of the last event of the page before; zero begins.
	After int64
	// Descending lists the newest first.
	Descending bool
	// Limit is how many events there may be, Bytes how large their Fields and
	// Private may be together; zero Bytes do not limit. A first event is answered
	// however large it is.
	Limit, Bytes int
}

// LogState is what a change of a session's log is decided on, read in the
// transaction that makes the change.
type LogState struct {
	// Session is the session's row as it is before the change.
	Session SessionRecord
	Last    int64 // Seq of the newest event in the log; 0 when there is none
	// Queued reads the queue, in the order of arrival.
	Queued func() ([]EventRecord, error)
}

// LogChange is one atomic change of a session: all of it is durable, or none.
type LogChange struct {
	// Session is the row as it is to be; nil leaves it. What may change is what
	// UpdateSession may change.
	Session *SessionRecord
	// Log enters the log in this order. One whose ID is queued is taken from the
	// queue and keeps its Fields, Type, Place and CreatedAt; others are new. ProcessedAt
	// is what is given, or a microsecond after the event before it if that is
	// later.
	Log []EventRecord
	// Queue is appended to the queue in this order.
	Queue []EventRecord
}

// EventStore keeps events. What a method acknowledged is durable; events go
// with their session.
type EventStore interface {
	// ChangeLog lets decide make a change of a session, in one transaction; its
	// error refuses all and is returned as it is. It must not call the store. A
	// session of another workspace is ErrNoRecord, and so is an event with a Place
	// that is not queued; an ID that is in the log is ErrDuplicate. It answers the change as it was made: with the session's row,
	// Seq, Place and ProcessedAt.
	ChangeLog(ctx context.Context, workspace, session string, decide func(LogState) (LogChange, error)) (LogChange, error)
	// Event finds an event of a session in its log or its queue.
	Event(ctx context.Context, session, id string) (EventRecord, error)
	// LastEvent is the Seq of the newest event in a session's log, or 0.
	LastEvent(ctx context.Context, session string) (int64, error)
	// Events lists the log of a session, and whether there is more.
	Events(ctx context.Context, session string, filter EventFilter, page EventPage) ([]EventRecord, bool, error)
	// QueuedEvents lists what waits, in the order of arrival.
	QueuedEvents(ctx context.Context, session string) ([]EventRecord, error)
	// ActiveSessions calls each for every session that is not archived and that
	// runs, is rescheduled or has queued events: what a server that was killed
	// has to take up. each may call the store.
	ActiveSessions(ctx context.Context, each func(SessionRecord) error) error
}

// read reads an event's Fields.
func (e EventRecord) read(into any) error {
	if err := json.Unmarshal(e.Fields, into); err != nil {
		return fmt.Errorf("reading the fields of %s %s: %w", e.Type, e.ID, err)
	}
	return nil
}

// Step is one atomic change of a session's log by the agent loop: all of it is
// durable, or none.
type Step struct {
	// Workspace and Session are ids.
	Workspace, Session string
	// After is the Seq of the last event that the loop has seen; ErrStale when
	// the log has grown since, so that a decision is never made on an old log.
	After int64
	// Events enter the log in this order. One whose ID is in the queue is taken
	// from there (its Type and Fields are kept); others are new. CreatedAt and
	// ProcessedAt may be zero and mean now. A session.usage with nil Fields gets
	// the session's usage; nil Fields of others mean {}.
	Events []EventRecord
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

// Turns is what the agent loop has of control: the sessions' logs, and the
// streams that show them. The Service writes to the same logs. Its methods may be
// called at the same time.
//
// A session's row follows from the events that enter its log: status from the
// session.status_* events, usage from span.model_request_end and from the results
// of tools that the server ran, active time from the first. The loop says nothing twice.
type Turns struct {
	store Store
	now   func() time.Time
	ids   ids
	hub   hub
}

// NewTurns makes a Turns. now tells the time; nil means time.Now.
func NewTurns(store Store, now func() time.Time) *Turns {
	if now == nil {
		now = time.Now
	}
	return &Turns{store: store, now: now, hub: hub{sessions: map[string]map[*Stream]struct{}{}}}
}

func (t *Turns) clock() time.Time { return t.now().UTC().Truncate(microseconds) }

// EventID makes the id of a new event. Those of one process sort strictly by
// the order they were made in.
func (t *Turns) EventID() string { return t.ids.make("sevt_", t.now()) }

// Load reads what a session's log has after an event (0: all of it) and what
// waits in its queue. ErrNoRecord when the session is gone.
func (t *Turns) Load(ctx context.Context, workspace, session string, after int64) (rec SessionRecord, log, queue []EventRecord, err error) {
	// The queue comes first: an event goes from there to the log, and one that is
	// seen in both is in the log.
	if queue, err = t.store.QueuedEvents(ctx, session); err != nil {
		return rec, nil, nil, err
	}
	for more := true; more; {
		var page []EventRecord
		if page, more, err = t.store.Events(ctx, session, EventFilter{}, EventPage{After: after, Limit: 1000}); err != nil {
			return rec, nil, nil, err
		}
		if len(page) > 0 {
			after = page[len(page)-1].Seq
		}
		log = append(log, page...)
	}
	taken := map[string]bool{}
	for _, e := range log {
		taken[e.ID] = e.Place > 0
	}
	queue = slices.DeleteFunc(queue, func(e EventRecord) bool { return taken[e.ID] })
	rec, err = t.store.Session(ctx, workspace, session)
	return rec, log, queue, err
}

// Commit makes a Step: what it answers is durable and has gone to the streams.
// ErrStale when the log is not at Step.After, ErrNoRecord when the session, or a
// queued event, is gone. It answers the session and the events as they stand in
// the log. A session that is archived takes no step: ErrEnded.
func (t *Turns) Commit(ctx context.Context, step Step) (SessionRecord, []EventRecord, error) {
	return t.change(ctx, step.Workspace, step.Session, func(state LogState, now time.Time) (LogChange, error) {
		if state.Last != step.After {
			return LogChange{}, ErrStale
		}
		if !state.Session.ArchivedAt.IsZero() {
			return LogChange{}, ErrEnded
		}
		return LogChange{Log: slices.Clone(step.Events)}, nil
	})
}

// Report appends a session.error to a session's log, for what happened to it
// outside of the agent loop. The session goes on, so that the error is never
// terminal. once leaves out what the log has said in the same words before. A
// session that is archived or gone is not told.
func (t *Turns) Report(ctx context.Context, rec SessionRecord, words string, once bool) error {
	text, err := json.Marshal(api.ErrorFields{Error: api.SessionError{
		Type: api.ErrorUnknown, Message: words, RetryStatus: api.RetryStatus{Type: api.RetryRetrying},
	}})
	if err != nil {
		return fmt.Errorf("writing an error event: %w", err)
	}
	if once {
		if said, err := t.said(ctx, rec.ID, words); err != nil || said {
			return err
		}
	}
	_, _, err = t.change(ctx, rec.Workspace, rec.ID, func(state LogState, _ time.Time) (LogChange, error) {
		if !state.Session.ArchivedAt.IsZero() {
			return LogChange{}, ErrEnded
		}
		return LogChange{Log: []EventRecord{{ID: t.EventID(), Type: api.EventSessionError, Fields: text}}}, nil
	})
	if errors.Is(err, ErrEnded) || errors.Is(err, ErrNoRecord) {
		return nil
	}
	return err
}

// said tells whether the newest errors of a session's log have one with these words.
func (t *Turns) said(ctx context.Context, session, words string) (bool, error) {
	errs, _, err := t.store.Events(ctx, session, EventFilter{Types: []string{api.EventSessionError}}, EventPage{Descending: true, Limit: 100})
	if err != nil {
		return false, fmt.Errorf("reading the errors of %s: %w", session, err)
	}
	for _, e := range errs {
		var f api.ErrorFields
		if err := e.read(&f); err != nil {
			return false, err
		}
		if f.Error.Message == words {
			return true, nil
		}
	}
	return false, nil
}

// ErrEnded says that a session is archived, so that its log has ended.
var ErrEnded = errors.New("session is archived")

// change makes a change of a session's log, accounts for it and publishes it.
func (t *Turns) change(ctx context.Context, workspace, session string, decide func(LogState, time.Time) (LogChange, error)) (SessionRecord, []EventRecord, error) {
	now := t.clock()
	made, err := t.store.ChangeLog(ctx, workspace, session, func(state LogState) (LogChange, error) {
		change, err := decide(state, now)
		if err != nil {
			return LogChange{}, err
		}
		return t.complete(state, change, now)
	})
	if err != nil {
		return SessionRecord{}, nil, err
	}
	t.hub.publish(session, made.Log)
	return *made.Session, append(made.Log, made.Queue...), nil
}

// complete fills in what a change leaves open, and what follows from it.
func (t *Turns) complete(state LogState, change LogChange, now time.Time) (LogChange, error) {
	if slices.ContainsFunc(change.Log, accounted) {
		rec := state.Session
		if change.Session != nil {
			rec = *change.Session
		}
		d, err := readSession(rec)
		if err != nil {
			return change, err
		}
		changed, err := d.account(&rec, change.Log, now)
		if err != nil {
			return change, err
		}
		if changed {
			if err := d.set(&rec); err != nil {
				return change, err
			}
			rec.UpdatedAt = now
			change.Session = &rec
		}
	}
	for _, events := range [][]EventRecord{change.Log, change.Queue} {
		for i := range events {
			e := &events[i]
			if e.CreatedAt.IsZero() {
				e.CreatedAt = now
			}
			if e.Fields == nil {
				e.Fields = []byte("{}")
			}
			e.ProcessedAt = now
		}
	}
	return change, nil
}

// Active calls each with every session that has to be taken up at start: one
// that runs, is rescheduled or has queued events.
func (t *Turns) Active(ctx context.Context, each func(SessionRecord) error) error {
	return t.store.ActiveSessions(ctx, each)
}

// PreviewStart tells the streams that asked for it that an event is being made:
// an agent.message or an agent.thinking, whose id Commit will be given. It never
// blocks and may be shed.
func (t *Turns) PreviewStart(session string, event api.EventPreview) {
	t.hub.preview(session, event, api.EventStart, api.EventStartFrame{Type: api.EventStart, Event: event})
}

// PreviewText sends more text of the block with this index of an agent.message
// that PreviewStart has named. It never blocks and may be shed; what a stream
// gets is a beginning of the text.
func (t *Turns) PreviewText(session, event string, block int, text string) {
	preview := api.EventPreview{Type: api.EventAgentMessage, ID: event}
	t.hub.preview(session, preview, api.EventDelta, api.EventDeltaFrame{Type: api.EventDelta, EventID: event,
		Delta: api.ContentDelta{Type: "content_delta", Index: block, Content: api.TextBlock{Type: "text", Text: text}}})
}

// deleted tells the streams of a session that it is gone, and ends them.
func (t *Turns) deleted(session string) {
	e := EventRecord{ID: t.EventID(), Type: api.EventSessionDeleted, ProcessedAt: t.clock()}
	t.hub.end(session, Frame{Type: e.Type, Data: e.Wire()})
}

// Close ends all streams, for a server that shuts down.
func (t *Turns) Close() { t.hub.close() }
