package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/atoll-run/atoll/internal/control"
)

const (
	selectEvents = `SELECT session_id, seq, place, id, type, fields, private, created_at, processed_at FROM events`
	selectQueued = `SELECT session_id, 0, place, id, type, fields, NULL, created_at, NULL FROM queued_events`
)

func scanEvent(row scanner) (e control.EventRecord, err error) {
	var created int64
	var processed sql.NullInt64
	err = row.Scan(&e.Session, &e.Seq, &e.Place, &e.ID, &e.Type, &e.Fields, &e.Private, &created, &processed)
	e.CreatedAt, e.ProcessedAt = moment(created), optionalMoment(processed)
	return e, err
}

func queued(ctx context.Context, s *statements, session string) ([]control.EventRecord, error) {
	return many(ctx, s, scanEvent, selectQueued+` WHERE session_id = $1 ORDER BY place`, session)
}

// lastEvent is the newest event of a log without its contents; none is the
// zero event.
func lastEvent(ctx context.Context, s *statements, session string) (control.EventRecord, error) {
	last, err := one(ctx, s, func(row scanner) (e control.EventRecord, err error) {
		var processed int64
		err = row.Scan(&e.Seq, &processed)
		e.ProcessedAt = moment(processed)
		return e, err
	}, `SELECT seq, processed_at FROM events WHERE session_id = $1 ORDER BY seq DESC LIMIT 1`, session)
	if errors.Is(err, control.ErrNoRecord) {
		return control.EventRecord{}, nil
	}
	return last, err
}

// ChangeLog implements [control.EventStore].
func (s *Store) ChangeLog(ctx context.Context, workspace, id string, decide func(control.LogState) (control.LogChange, error)) (control.LogChange, error) {
	var refused error
	made, err := write(ctx, s, func(tx *statements) (made control.LogChange, err error) {
		ctx := context.Background()
		rec, err := session(ctx, tx, workspace, id)
		if err != nil {
			return made, err
		}
		last, err := lastEvent(ctx, tx, id)
		if err != nil {
			return made, err
		}
		change, err := decide(control.LogState{Session: rec, Last: last.Seq,
			Queued: func() ([]control.EventRecord, error) { return queued(ctx, tx, id) }})
		if err != nil {
			refused = err
			return made, err
		}
		if change.Session != nil {
			if rec, err = putSession(ctx, tx, workspace, id, *change.Session); err != nil {
				return made, err
			}
		}
		made.Session = &rec
		if made.Log, err = appendEvents(ctx, tx, last, id, change.Log); err != nil {
			return made, err
		}
		made.Queue, err = enqueue(ctx, tx, id, change.Queue)
		return made, err
	})
	return made, wrapUnless(refused, "changing a session's log", err)
}

// appendEvents puts events into the log behind last, out of the queue where
// they are there.
func appendEvents(ctx context.Context, tx *statements, last control.EventRecord, session string, events []control.EventRecord) ([]control.EventRecord, error) {
	var made []control.EventRecord
	for _, e := range events {
		e.Session = session
		waited, err := one(ctx, tx, scanEvent, `DELETE FROM queued_events WHERE id = $1 AND session_id = $2
RETURNING session_id, 0, place, id, type, fields, NULL, created_at, NULL`, e.ID, session)
		switch {
		case err == nil:
			waited.ProcessedAt, waited.Private = e.ProcessedAt, e.Private
			e = waited
		case e.Place > 0 || !errors.Is(err, control.ErrNoRecord):
			return nil, err
		}
		e.Seq = last.Seq + 1
		if next := last.ProcessedAt.Add(1000); last.Seq > 0 && e.ProcessedAt.Before(next) {
			e.ProcessedAt = next
		}
		private := sql.NullString{String: string(e.Private), Valid: e.Private != nil}
		if _, err := tx.exec(ctx, `INSERT INTO events (session_id, seq, place, id, type, fields, private, created_at, processed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			session, e.Seq, e.Place, e.ID, e.Type, string(e.Fields), private, micros(e.CreatedAt), micros(e.ProcessedAt)); err != nil {
			return nil, amend(err, control.ErrNoRecord)
		}
		made = append(made, e)
		last = e
	}
	return made, nil
}

// enqueue appends events to a session's queue and sets their places.
func enqueue(ctx context.Context, tx *statements, session string, events []control.EventRecord) ([]control.EventRecord, error) {
	var made []control.EventRecord
	for _, e := range events {
		place, err := one(ctx, tx, func(row scanner) (place int64, err error) {
			err = row.Scan(&place)
			return place, err
		}, `INSERT INTO queued_events (session_id, id, type, fields, created_at) VALUES ($1, $2, $3, $4, $5) RETURNING place`,
			session, e.ID, e.Type, string(e.Fields), micros(e.CreatedAt))
		if err != nil {
			return nil, amend(err, control.ErrNoRecord)
		}
		e.Session, e.Seq, e.Place = session, 0, place
		made = append(made, e)
	}
	return made, nil
}

// Event implements [control.EventStore].
func (s *Store) Event(ctx context.Context, session, id string) (control.EventRecord, error) {
	// The queue is asked first: an event goes from there to the log.
	for _, table := range []string{selectQueued, selectEvents} {
		e, err := one(ctx, s.read, scanEvent, table+` WHERE id = $1 AND session_id = $2`, id, session)
		if !errors.Is(err, control.ErrNoRecord) {
			return e, wrap("reading event", err)
		}
	}
	return control.EventRecord{}, wrap("reading event", control.ErrNoRecord)
}

// LastEvent implements [control.EventStore].
func (s *Store) LastEvent(ctx context.Context, session string) (int64, error) {
	last, err := lastEvent(ctx, s.read, session)
	return last.Seq, wrap("reading the end of a log", err)
}

// QueuedEvents implements [control.EventStore].
func (s *Store) QueuedEvents(ctx context.Context, session string) ([]control.EventRecord, error) {
	events, err := queued(ctx, s.read, session)
	return events, wrap("reading queued events", err)
}

// Events implements [control.EventStore]. Types and times are compared event by
// event.
func (s *Store) Events(ctx context.Context, session string, filter control.EventFilter, page control.EventPage) (_ []control.EventRecord, more bool, err error) {
	l := list{}
	l.where("session_id = $%d", session)
	op, order := ">", "ASC"
	if page.Descending {
		op, order = "<", "DESC"
	}
	if page.After > 0 {
		l.where("seq "+op+" $%d", page.After)
	}
	if len(filter.Types) > 0 {
		args := make([]any, len(filter.Types))
		for i, name := range filter.Types {
			args[i] = name
		}
		// The plus keeps the search in the order of the log.
		l.where("+type IN ("+strings.TrimSuffix(strings.Repeat("$%d, ", len(args)), ", ")+")", args...)
	}
	l.within("processed_at", filter.CreatedGT, filter.CreatedGTE, filter.CreatedLT, filter.CreatedLTE)
	query := fmt.Sprintf("%s WHERE %s ORDER BY seq %s LIMIT $%d", selectEvents, strings.Join(l.conds, " AND "), order, len(l.args)+1)
	events, more, err := some(ctx, s.read, query, page, append(l.args, page.Limit+1))
	return events, more, wrap("reading events", err)
}

// some reads rows until the page is full; more rows are left unread.
func some(ctx context.Context, s *statements, query string, page control.EventPage, args []any) (events []control.EventRecord, more bool, err error) {
	stmt, err := s.get(ctx, query)
	if err != nil {
		return nil, false, err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for size := 0; rows.Next(); {
		if full := page.Bytes > 0 && size >= page.Bytes; full || len(events) == page.Limit {
			return events, true, nil
		}
		e, err := scanEvent(rows)
		if err != nil {
			return nil, false, err
		}
		size += len(e.Fields) + len(e.Private)
		events = append(events, e)
	}
	return events, false, rows.Err()
}

// ActiveSessions implements [control.EventStore].
func (s *Store) ActiveSessions(ctx context.Context, each func(control.SessionRecord) error) error {
	return s.walkSessions(ctx, `archived_at IS NULL AND (status IN ('running', 'rescheduling')
OR EXISTS (SELECT 1 FROM queued_events WHERE session_id = sessions.id))`, each)
}
