package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// The columns created_at and id are found under their bare names in lists.
const selectAgents = `SELECT a.id, a.workspace_id, a.name, v.version, v.document, a.created_at, v.updated_at, a.archived_at
FROM agents a JOIN agent_versions v ON v.agent_id = a.id`

func scanAgent(row scanner) (rec control.AgentRecord, err error) {
	var created, updated int64
	var archived sql.NullInt64
	err = row.Scan(&rec.ID, &rec.Workspace, &rec.Name, &rec.Version, &rec.Document, &created, &updated, &archived)
	rec.CreatedAt, rec.UpdatedAt, rec.ArchivedAt = moment(created), moment(updated), optionalMoment(archived)
	return rec, err
}

func agent(ctx context.Context, s *statements, workspace, id string, version int) (control.AgentRecord, error) {
	if version == 0 {
		return one(ctx, s, scanAgent, selectAgents+` AND v.version = a.version WHERE a.id = $1 AND a.workspace_id = $2`, id, workspace)
	}
	return one(ctx, s, scanAgent, selectAgents+` WHERE a.id = $1 AND a.workspace_id = $2 AND v.version = $3`, id, workspace, version)
}

func insertAgentVersion(ctx context.Context, tx *statements, rec control.AgentRecord) error {
	_, err := tx.exec(ctx, `INSERT INTO agent_versions (agent_id, version, document, updated_at) VALUES ($1, $2, $3, $4)`,
		rec.ID, rec.Version, string(rec.Document), micros(rec.UpdatedAt))
	return amend(err, control.ErrNoRecord)
}

// CreateAgent implements [control.AgentStore]. A Version of 0 is taken as 1. An
// id that is taken is ErrDuplicate; names may repeat.
func (s *Store) CreateAgent(ctx context.Context, rec control.AgentRecord) error {
	rec.Version = max(rec.Version, 1)
	err := s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		if _, err := tx.exec(ctx, `INSERT INTO agents (id, workspace_id, name, version, created_at, archived_at) VALUES ($1, $2, $3, $4, $5, $6)`,
			rec.ID, rec.Workspace, rec.Name, rec.Version, micros(rec.CreatedAt), optional(rec.ArchivedAt)); err != nil {
			return amend(err, control.ErrNoRecord)
		}
		return insertAgentVersion(ctx, tx, rec)
	})
	return wrap("storing agent", err)
}

// Agent implements [control.AgentStore].
func (s *Store) Agent(ctx context.Context, workspace, id string, version int) (control.AgentRecord, error) {
	rec, err := agent(ctx, s.read, workspace, id, version)
	return rec, wrap("reading agent", err)
}

// UpdateAgent implements [control.AgentStore]. What change may alter is Name,
// Document and UpdatedAt. It must not write by itself.
func (s *Store) UpdateAgent(ctx context.Context, workspace, id string, change func(*control.AgentRecord) (bool, error)) (control.AgentRecord, error) {
	read := func(ctx context.Context, tx *statements) (control.AgentRecord, error) {
		return agent(ctx, tx, workspace, id, 0)
	}
	return revise(ctx, s, "updating agent", read, change, func(ctx context.Context, tx *statements, old, rec control.AgentRecord) (control.AgentRecord, error) {
		rec.ID, rec.Version = old.ID, old.Version+1
		n, err := tx.exec(ctx, `UPDATE agents SET name = $3, version = $4 WHERE id = $1 AND version = $2`,
			id, old.Version, rec.Name, rec.Version)
		if err != nil {
			return rec, err
		}
		if n == 0 {
			return rec, control.ErrStale
		}
		if err := insertAgentVersion(ctx, tx, rec); err != nil {
			return rec, err
		}
		return agent(ctx, tx, workspace, id, rec.Version)
	})
}

// ArchiveAgent implements [control.AgentStore].
func (s *Store) ArchiveAgent(ctx context.Context, workspace, id string, at time.Time) (control.AgentRecord, error) {
	rec, err := write(ctx, s, func(tx *statements) (_ control.AgentRecord, err error) {
		ctx := context.Background()
		n, err := tx.exec(ctx, `UPDATE agents SET archived_at = $3 WHERE id = $1 AND workspace_id = $2 AND archived_at IS NULL`,
			id, workspace, micros(at))
		if err != nil {
			return control.AgentRecord{}, err
		}
		if n > 0 {
			if _, err := tx.exec(ctx, `UPDATE agent_versions SET updated_at = $2
WHERE agent_id = $1 AND version = (SELECT version FROM agents WHERE id = $1)`, id, micros(at)); err != nil {
				return control.AgentRecord{}, err
			}
		}
		return agent(ctx, tx, workspace, id, 0)
	})
	return rec, wrap("archiving agent", err)
}

// ListAgents implements [control.AgentStore].
func (s *Store) ListAgents(ctx context.Context, workspace string, filter control.AgentFilter, page control.Page) ([]control.AgentRecord, bool, error) {
	l := list{selects: selectAgents + ` AND v.version = a.version`}
	l.where("workspace_id = $%d", workspace)
	if !filter.IncludeArchived {
		l.where("archived_at IS NULL")
	}
	l.between(time.Time{}, filter.CreatedGTE, time.Time{}, filter.CreatedLTE)
	recs, more, err := fetch(ctx, s.read, l, page, scanAgent)
	return recs, more, wrap("listing agents", err)
}

// ListAgentVersions implements [control.AgentStore]. An agent that is not there
// is ErrNoRecord.
func (s *Store) ListAgentVersions(ctx context.Context, workspace, id string, after, limit int) ([]control.AgentRecord, bool, error) {
	const where = ` WHERE a.id = $1 AND a.workspace_id = $2 AND v.version < $3 ORDER BY v.version DESC LIMIT $4`
	if after == 0 {
		after = 1 << 31
	}
	limit = max(limit, 0)
	recs, err := many(ctx, s.read, scanAgent, selectAgents+where, id, workspace, after, limit+1)
	if err == nil && len(recs) == 0 {
		_, err = agent(ctx, s.read, workspace, id, 0)
	}
	if err != nil {
		return nil, false, wrap("listing agent versions", err)
	}
	if len(recs) > limit {
		return recs[:limit], true, nil
	}
	return recs, false, nil
}
