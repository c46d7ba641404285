package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

const selectWorkspaces = `SELECT id, name, created_at, archived_at, max_sessions FROM workspaces`

func scanWorkspace(row scanner) (ws control.Workspace, err error) {
	var created int64
	var archived sql.NullInt64
	err = row.Scan(&ws.ID, &ws.Name, &created, &archived, &ws.MaxSessions)
	ws.CreatedAt, ws.ArchivedAt = moment(created), optionalMoment(archived)
	return ws, err
}

func scanCount(row scanner) (n int, err error) {
	err = row.Scan(&n)
	return n, err
}

// CreateWorkspace implements [control.KeyStore]. An id or name that is taken is
// ErrDuplicate.
func (s *Store) CreateWorkspace(ctx context.Context, ws control.Workspace) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		_, err := tx.exec(context.Background(), `INSERT INTO workspaces (id, name, created_at, max_sessions) VALUES ($1, $2, $3, $4)`,
			ws.ID, ws.Name, micros(ws.CreatedAt), ws.MaxSessions)
		return amend(err, err)
	})
	return wrap("storing workspace", err)
}

// ListWorkspaces implements [control.KeyStore], oldest first.
func (s *Store) ListWorkspaces(ctx context.Context) ([]control.Workspace, error) {
	all, err := many(ctx, s.read, scanWorkspace, selectWorkspaces+` ORDER BY created_at, id`)
	return all, wrap("listing workspaces", err)
}

// LimitWorkspace implements [control.KeyStore].
func (s *Store) LimitWorkspace(ctx context.Context, id string, maxSessions int) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		n, err := tx.exec(context.Background(), `UPDATE workspaces SET max_sessions = $2 WHERE id = $1`, id, maxSessions)
		if err == nil && n == 0 {
			return control.ErrNoRecord
		}
		return err
	})
	return wrap("limiting workspace", err)
}

// ArchiveWorkspace implements [control.KeyStore].
func (s *Store) ArchiveWorkspace(ctx context.Context, id string, at time.Time) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		ws, err := one(ctx, tx, scanWorkspace, selectWorkspaces+` WHERE id = $1`, id)
		if err != nil || !ws.ArchivedAt.IsZero() {
			return err
		}
		n, err := tx.exec(ctx, `UPDATE workspaces SET archived_at = $2 WHERE id = $1
AND NOT EXISTS (SELECT 1 FROM sessions WHERE workspace_id = $1 AND archived_at IS NULL)`, id, micros(at))
		if err == nil && n == 0 {
			return control.ErrInUse
		}
		return err
	})
	return wrap("archiving workspace", err)
}

const selectKeys = `SELECT id, workspace_id, name, kind, scope, hash, hint, created_at, revoked_at FROM keys`

func scanKey(row scanner) (key control.Key, err error) {
	var created int64
	var revoked sql.NullInt64
	var hash []byte
	err = row.Scan(&key.ID, &key.Workspace, &key.Name, &key.Kind, &key.Scope, &hash, &key.Hint, &created, &revoked)
	copy(key.Hash[:], hash)
	key.CreatedAt, key.RevokedAt = moment(created), optionalMoment(revoked)
	return key, err
}

// CreateKey implements [control.KeyStore]. An id or hash that is taken, revoked
// or not, is ErrDuplicate.
func (s *Store) CreateKey(ctx context.Context, key control.Key) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		ws, err := one(ctx, tx, scanWorkspace, selectWorkspaces+` WHERE id = $1`, key.Workspace)
		if err != nil {
			return err
		}
		if !ws.ArchivedAt.IsZero() {
			return control.ErrStale
		}
		_, err = tx.exec(ctx, `INSERT INTO keys
(id, workspace_id, name, kind, scope, hash, hint, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			key.ID, key.Workspace, key.Name, string(key.Kind), key.Scope, key.Hash[:], key.Hint,
			micros(key.CreatedAt), optional(key.RevokedAt))
		return amend(err, control.ErrNoRecord)
	})
	return wrap("storing key", err)
}

// KeyByHash implements [control.KeyStore].
func (s *Store) KeyByHash(ctx context.Context, hash [32]byte) (control.Key, error) {
	key, err := one(ctx, s.read, scanKey, selectKeys+` WHERE hash = $1 AND revoked_at IS NULL
AND EXISTS (SELECT 1 FROM workspaces WHERE id = workspace_id AND archived_at IS NULL)`, hash[:])
	return key, wrap("reading key", err)
}

// ListKeys implements [control.KeyStore], oldest first, revoked ones included.
func (s *Store) ListKeys(ctx context.Context, workspace string) ([]control.Key, error) {
	keys, err := many(ctx, s.read, scanKey, selectKeys+` WHERE workspace_id = $1 ORDER BY created_at, id`, workspace)
	return keys, wrap("listing keys", err)
}

// RevokeKey implements [control.KeyStore]. A second call keeps the first time.
func (s *Store) RevokeKey(ctx context.Context, workspace, id string, at time.Time) error {
	err := s.writes.write(ctx, func(tx *statements) error {
		n, err := tx.exec(context.Background(), `UPDATE keys SET revoked_at = COALESCE(revoked_at, $3) WHERE id = $1 AND workspace_id = $2`,
			id, workspace, micros(at))
		if err == nil && n == 0 {
			return control.ErrNoRecord
		}
		return err
	})
	return wrap("revoking key", err)
}
