package store

import (
	"context"
	"database/sql"
	"strings"

	"github.com/atoll-run/atoll/internal/control"
)

const selectSessions = `SELECT id, workspace_id, environment_id, agent_id, agent_version, status, document, created_at, updated_at, archived_at FROM sessions`

func scanSession(row scanner) (rec control.SessionRecord, err error) {
	var created, updated int64
	var archived sql.NullInt64
	err = row.Scan(&rec.ID, &rec.Workspace, &rec.Environment, &rec.Agent, &rec.AgentVersion, &rec.Status,
		&rec.Document, &created, &updated, &archived)
	rec.CreatedAt, rec.UpdatedAt, rec.ArchivedAt = moment(created), moment(updated), optionalMoment(archived)
	return rec, err
}

func session(ctx context.Context, s *statements, workspace, id string) (control.SessionRecord, error) {
	return one(ctx, s, scanSession, selectSessions+` WHERE id = $1 AND workspace_id = $2`, id, workspace)
}

// CreateSession implements [control.SessionStore]. An id that is taken is
// ErrDuplicate.
func (s *Store) CreateSession(ctx context.Context, rec control.SessionRecord, initial ...control.EventRecord) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		env, err := environment(ctx, tx, rec.Workspace, rec.Environment)
		if err != nil {
			return err
		}
		if !env.ArchivedAt.IsZero() {
			return control.ErrStale
		}
		ws, err := one(ctx, tx, scanWorkspace, selectWorkspaces+` WHERE id = $1`, rec.Workspace)
		if err != nil {
			return err
		}
		if !ws.ArchivedAt.IsZero() {
			return control.ErrNoRecord
		}
		if ws.MaxSessions > 0 {
			live, err := one(ctx, tx, scanCount, `SELECT count(*) FROM sessions WHERE workspace_id = $1 AND archived_at IS NULL`, rec.Workspace)
			if err != nil {
				return err
			}
			if live >= ws.MaxSessions {
				return control.ErrLimit
			}
		}
		_, err = tx.exec(ctx, `INSERT INTO sessions
(id, workspace_id, environment_id, agent_id, agent_version, status, document, created_at, updated_at, archived_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			rec.ID, rec.Workspace, rec.Environment, rec.Agent, rec.AgentVersion, rec.Status, string(rec.Document),
			micros(rec.CreatedAt), micros(rec.UpdatedAt), optional(rec.ArchivedAt))
		if err != nil {
			return amend(err, control.ErrNoRecord)
		}
		_, err = enqueue(ctx, tx, rec.ID, initial)
		return err
	})
	return wrap("storing session", err)
}

// Session implements [control.SessionStore].
func (s *Store) Session(ctx context.Context, workspace, id string) (control.SessionRecord, error) {
	rec, err := session(ctx, s.read, workspace, id)
	return rec, wrap("reading session", err)
}

// UpdateSession implements [control.SessionStore]. What change may alter is
// Agent, AgentVersion, Status, Document, UpdatedAt and ArchivedAt. It must not
// write by itself.
func (s *Store) UpdateSession(ctx context.Context, workspace, id string, change func(*control.SessionRecord) (bool, error)) (control.SessionRecord, error) {
	read := func(ctx context.Context, tx *statements) (control.SessionRecord, error) {
		return session(ctx, tx, workspace, id)
	}
	return revise(ctx, s, "updating session", read, change, func(ctx context.Context, tx *statements, _, rec control.SessionRecord) (control.SessionRecord, error) {
		return putSession(ctx, tx, workspace, id, rec)
	})
}

// putSession writes what may change of a session, and reads it back.
func putSession(ctx context.Context, tx *statements, workspace, id string, rec control.SessionRecord) (control.SessionRecord, error) {
	return one(ctx, tx, scanSession, `UPDATE sessions
SET agent_id = $3, agent_version = $4, status = $5, document = $6, updated_at = $7, archived_at = $8
WHERE id = $1 AND workspace_id = $2
RETURNING id, workspace_id, environment_id, agent_id, agent_version, status, document, created_at, updated_at, archived_at`,
		id, workspace, rec.Agent, rec.AgentVersion, rec.Status, string(rec.Document), micros(rec.UpdatedAt), optional(rec.ArchivedAt))
}

// ListSessions implements [control.SessionStore]. Agent, archived and times are
// found by an index; AgentVersion and Statuses are compared row by row.
func (s *Store) ListSessions(ctx context.Context, workspace string, filter control.SessionFilter, page control.Page) ([]control.SessionRecord, bool, error) {
	l := list{selects: selectSessions}
	l.where("workspace_id = $%d", workspace)
	if filter.Agent != "" {
		l.where("agent_id = $%d", filter.Agent)
	}
	if filter.AgentVersion != 0 {
		l.where("agent_version = $%d", filter.AgentVersion)
	}
	if len(filter.Statuses) > 0 {
		args := make([]any, len(filter.Statuses))
		for i, status := range filter.Statuses {
			args[i] = status
		}
		l.where("status IN ("+strings.TrimSuffix(strings.Repeat("$%d, ", len(args)), ", ")+")", args...)
	}
	if !filter.IncludeArchived {
		l.where("archived_at IS NULL")
	}
	l.between(filter.CreatedGT, filter.CreatedGTE, filter.CreatedLT, filter.CreatedLTE)
	recs, more, err := fetch(ctx, s.read, l, page, scanSession)
	return recs, more, wrap("listing sessions", err)
}

// DeleteSession implements [control.SessionStore].
func (s *Store) DeleteSession(ctx context.Context, workspace, id string, check func(control.SessionRecord) error) error {
	var refused error
	err := s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		rec, err := session(ctx, tx, workspace, id)
		if err != nil {
			return err
		}
		if refused = check(rec); refused != nil {
			return refused
		}
		_, err = tx.exec(ctx, `DELETE FROM sessions WHERE id = $1 AND workspace_id = $2`, id, workspace)
		return err
	})
	return wrapUnless(refused, "deleting session", err)
}

// LiveSessions implements [control.SessionStore]. each may call the store:
// nothing is held open meanwhile. A session that is created or archived during
// the walk may or may not be seen.
func (s *Store) LiveSessions(ctx context.Context, each func(control.SessionRecord) error) error {
	return s.walkSessions(ctx, `archived_at IS NULL`, each)
}

// walkSessions visits the sessions that a condition holds for.
func (s *Store) walkSessions(ctx context.Context, cond string, each func(control.SessionRecord) error) error {
	return walk(ctx, s, "reading sessions", scanSession, selectSessions+` WHERE `+cond+` AND id > $1 ORDER BY id LIMIT $2`,
		func(rec control.SessionRecord) string { return rec.ID }, each)
}
