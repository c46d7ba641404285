package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"time"
)

//go:embed migrations/*.sql
var migrations embed.FS

func embedded() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is compiled in
	}
	return sub
}

// migrate brings the database forward: each file of dir that it has not had,
// in order of name, in a transaction of its own, recorded by name. A database
// that has had anything else is refused untouched.
func migrate(ctx context.Context, conn *sql.Conn, dir fs.FS) error {
	names, err := fs.Glob(dir, "*.sql") // sorted
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (
  name       TEXT PRIMARY KEY NOT NULL,
  applied_at INTEGER NOT NULL
) STRICT`); err != nil {
		return fmt.Errorf("preparing migrations: %w", err)
	}
	had, err := applied(ctx, conn)
	if err != nil {
		return fmt.Errorf("reading migrations: %w", err)
	}
	for i, name := range had {
		if i >= len(names) || names[i] != name {
			return fmt.Errorf("%w of Atoll: it has had migration %s", ErrNewer, path.Base(name))
		}
	}
	for _, name := range names[len(had):] {
		if err := apply(ctx, conn, dir, name); err != nil {
			return fmt.Errorf("migration %s: %w", name, err)
		}
	}
	return nil
}

func applied(ctx context.Context, conn *sql.Conn) ([]string, error) {
	tx := newStatements(conn.PrepareContext)
	defer tx.close()
	return many(ctx, tx, func(row scanner) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	}, `SELECT name FROM migrations ORDER BY name`)
}

func apply(ctx context.Context, conn *sql.Conn, dir fs.FS, name string) (err error) {
	script, err := fs.ReadFile(dir, name)
	if err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, sqlBegin); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), sqlRollback)
		}
	}()
	if _, err := conn.ExecContext(ctx, string(script)); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, `INSERT INTO migrations (name, applied_at) VALUES ($1, $2)`,
		name, micros(time.Now())); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, sqlCommit)
	return err
}
