package store

import (
	"context"
	"database/sql"

	"github.com/atoll-run/atoll/internal/control"
)

const selectEnvironments = `SELECT id, workspace_id, name, document, created_at, updated_at, archived_at FROM environments`

func scanEnvironment(row scanner) (rec control.EnvironmentRecord, err error) {
	var created, updated int64
	var archived sql.NullInt64
	err = row.Scan(&rec.ID, &rec.Workspace, &rec.Name, &rec.Document, &created, &updated, &archived)
	rec.CreatedAt, rec.UpdatedAt, rec.ArchivedAt = moment(created), moment(updated), optionalMoment(archived)
	return rec, err
}

func environment(ctx context.Context, s *statements, workspace, id string) (control.EnvironmentRecord, error) {
	return one(ctx, s, scanEnvironment, selectEnvironments+` WHERE id = $1 AND workspace_id = $2`, id, workspace)
}

// CreateEnvironment implements [control.EnvironmentStore].
func (s *Store) CreateEnvironment(ctx context.Context, rec control.EnvironmentRecord) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		_, err := tx.exec(context.Background(), `INSERT INTO environments
(id, workspace_id, name, document, created_at, updated_at, archived_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			rec.ID, rec.Workspace, rec.Name, string(rec.Document),
			micros(rec.CreatedAt), micros(rec.UpdatedAt), optional(rec.ArchivedAt))
		return amend(err, control.ErrNoRecord)
	})
	return wrap("storing environment", err)
}

// Environment implements [control.EnvironmentStore].
func (s *Store) Environment(ctx context.Context, workspace, id string) (control.EnvironmentRecord, error) {
	rec, err := environment(ctx, s.read, workspace, id)
	return rec, wrap("reading environment", err)
}

// UpdateEnvironment implements [control.EnvironmentStore]. What change may
// alter is Name, Document, UpdatedAt and ArchivedAt. It must not write by itself.
func (s *Store) UpdateEnvironment(ctx context.Context, workspace, id string, change func(*control.EnvironmentRecord) (bool, error)) (control.EnvironmentRecord, error) {
	read := func(ctx context.Context, tx *statements) (control.EnvironmentRecord, error) {
		return environment(ctx, tx, workspace, id)
	}
	return revise(ctx, s, "updating environment", read, change, func(ctx context.Context, tx *statements, _, rec control.EnvironmentRecord) (control.EnvironmentRecord, error) {
		return one(ctx, tx, scanEnvironmentAmended, `UPDATE environments
SET name = $3, document = $4, updated_at = $5, archived_at = $6 WHERE id = $1 AND workspace_id = $2
RETURNING id, workspace_id, name, document, created_at, updated_at, archived_at`,
			id, workspace, rec.Name, string(rec.Document), micros(rec.UpdatedAt), optional(rec.ArchivedAt))
	})
}

func scanEnvironmentAmended(row scanner) (control.EnvironmentRecord, error) {
	rec, err := scanEnvironment(row)
	return rec, amend(err, control.ErrNoRecord)
}

// ListEnvironments implements [control.EnvironmentStore].
func (s *Store) ListEnvironments(ctx context.Context, workspace string, includeArchived bool, page control.Page) ([]control.EnvironmentRecord, bool, error) {
	l := list{selects: selectEnvironments}
	l.where("workspace_id = $%d", workspace)
	if !includeArchived {
		l.where("archived_at IS NULL")
	}
	recs, more, err := fetch(ctx, s.read, l, page, scanEnvironment)
	return recs, more, wrap("listing environments", err)
}

// DeleteEnvironment implements [control.EnvironmentStore].
func (s *Store) DeleteEnvironment(ctx context.Context, workspace, id string) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		n, err := tx.exec(context.Background(), `DELETE FROM environments WHERE id = $1 AND workspace_id = $2`, id, workspace)
		if err == nil && n == 0 {
			err = control.ErrNoRecord
		}
		return amend(err, control.ErrInUse)
	})
	return wrap("deleting environment", err)
}
