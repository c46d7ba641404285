package store

import (
	"context"
	"encoding/json"

	"github.com/atoll-run/atoll/internal/control"
)

func scanBuild(row scanner) (rec control.BuildRecord, err error) {
	var updated int64
	var layers []byte
	if err := row.Scan(&rec.Environment, &rec.Wanted, &rec.Status, &rec.BaseDigest, &layers, &rec.Document, &updated); err != nil {
		return rec, err
	}
	rec.UpdatedAt = moment(updated)
	return rec, json.Unmarshal(layers, &rec.Layers)
}

// PutBuild implements [control.BuildStore]. A Document of no length is kept as null.
func (s *Store) PutBuild(ctx context.Context, rec control.BuildRecord, still func(control.EnvironmentRecord) bool) error {
	layers, err := json.Marshal(rec.Layers)
	if err != nil {
		return wrap("storing build", err)
	}
	if len(rec.Document) == 0 {
		rec.Document = []byte("null")
	}
	err = s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		env, err := one(ctx, tx, scanEnvironment, selectEnvironments+" WHERE id = $1", rec.Environment)
		if err != nil {
			return err
		}
		if !still(env) {
			return control.ErrStale
		}
		_, err = tx.exec(ctx, `INSERT INTO builds
(environment_id, wanted, status, base_digest, layers, document, updated_at, log) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (environment_id) DO UPDATE SET wanted = excluded.wanted, status = excluded.status, base_digest = excluded.base_digest,
layers = excluded.layers, document = excluded.document, updated_at = excluded.updated_at, log = excluded.log`,
			rec.Environment, rec.Wanted, rec.Status, rec.BaseDigest, string(layers), string(rec.Document), micros(rec.UpdatedAt), rec.Log)
		return err
	})
	return wrap("storing build", err)
}

// Build implements [control.BuildStore]. One that never was is ErrNoRecord.
func (s *Store) Build(ctx context.Context, environment string) (control.BuildRecord, error) {
	rec, err := one(ctx, s.read, scanBuild, `SELECT environment_id, wanted, status, base_digest, layers, document, updated_at
FROM builds WHERE environment_id = $1`, environment)
	return rec, wrap("reading build", err)
}

// BuildLog implements [control.BuildStore].
func (s *Store) BuildLog(ctx context.Context, environment string) ([]byte, error) {
	log, err := one(ctx, s.read, func(row scanner) (log []byte, err error) {
		err = row.Scan(&log)
		return log, err
	}, `SELECT log FROM builds WHERE environment_id = $1`, environment)
	return log, wrap("reading the log of a build", err)
}

// ReferencedLayers implements [control.BuildStore]. each may call the store.
func (s *Store) ReferencedLayers(ctx context.Context, each func(environment, baseDigest string, layers []string) error) error {
	return walk(ctx, s, "reading referenced layers", scanBuild, `SELECT b.environment_id, b.wanted, b.status, b.base_digest, b.layers, b.document, b.updated_at
FROM builds b JOIN environments e ON e.id = b.environment_id
WHERE b.environment_id > $1 AND (e.archived_at IS NULL
  OR EXISTS (SELECT 1 FROM sessions s WHERE s.environment_id = e.id AND s.archived_at IS NULL))
ORDER BY b.environment_id LIMIT $2`,
		func(rec control.BuildRecord) string { return rec.Environment },
		func(rec control.BuildRecord) error { return each(rec.Environment, rec.BaseDigest, rec.Layers) })
}

// UnfinishedBuilds implements [control.BuildStore]. each may call the store.
func (s *Store) UnfinishedBuilds(ctx context.Context, each func(control.EnvironmentRecord) error) error {
	return walk(ctx, s, "reading unfinished builds", scanEnvironment, `SELECT e.id, e.workspace_id, e.name, e.document, e.created_at, e.updated_at, e.archived_at
FROM environments e LEFT JOIN builds b ON b.environment_id = e.id
WHERE e.id > $1 AND e.archived_at IS NULL
  AND (b.environment_id IS NULL OR b.status IN ('queued', 'building') OR b.updated_at < e.updated_at)
ORDER BY e.id LIMIT $2`,
		func(rec control.EnvironmentRecord) string { return rec.ID }, each)
}

func scanNumber(row scanner) (n int64, err error) {
	err = row.Scan(&n)
	return n, err
}

// LayerEpoch implements [control.BuildStore].
func (s *Store) LayerEpoch(ctx context.Context, workspace string) (int64, error) {
	epoch, err := one(ctx, s.read, scanNumber, `SELECT layer_epoch FROM workspaces WHERE id = $1`, workspace)
	return epoch, wrap("reading the epoch of layers", err)
}

// RaiseLayerEpoch implements [control.BuildStore].
func (s *Store) RaiseLayerEpoch(ctx context.Context, workspace string, atLeast int64) (epoch int64, err error) {
	err = s.writes.write(ctx, func(tx *statements) error {
		ctx := context.Background()
		old, err := one(ctx, tx, scanNumber, `SELECT layer_epoch FROM workspaces WHERE id = $1`, workspace)
		if err != nil {
			return err
		}
		epoch = max(atLeast, old+1)
		_, err = tx.exec(ctx, `UPDATE workspaces SET layer_epoch = $2 WHERE id = $1`, workspace, epoch)
		return err
	})
	return epoch, wrap("raising the epoch of layers", err)
}

// EnvironmentWorkspace implements [control.BuildStore].
func (s *Store) EnvironmentWorkspace(ctx context.Context, environment string) (string, error) {
	workspace, err := one(ctx, s.read, func(row scanner) (id string, err error) {
		err = row.Scan(&id)
		return id, err
	}, `SELECT workspace_id FROM environments WHERE id = $1`, environment)
	return workspace, wrap("reading whose an environment is", err)
}
