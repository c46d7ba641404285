package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"

	"github.com/atoll-run/atoll/internal/control"
)

// statements prepares each SQL text once and runs it, on the readers' pool or
// on the writer's connection. The texts are few: none holds a value.
type statements struct {
	prepare func(context.Context, string) (*sql.Stmt, error)

	mu   sync.RWMutex
	made map[string]*sql.Stmt
}

func newStatements(prepare func(context.Context, string) (*sql.Stmt, error)) *statements {
	return &statements{prepare: prepare, made: map[string]*sql.Stmt{}}
}

func (s *statements) get(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.RLock()
	stmt := s.made[query]
	s.mu.RUnlock()
	if stmt != nil {
		return stmt, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if stmt := s.made[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	s.made[query] = stmt
	return stmt, nil
}

func (s *statements) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, stmt := range s.made {
		_ = stmt.Close()
	}
	clear(s.made)
}

// exec runs a statement and answers how many rows it touched.
func (s *statements) exec(ctx context.Context, query string, args ...any) (int64, error) {
	stmt, err := s.get(ctx, query)
	if err != nil {
		return 0, err
	}
	res, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// scanner is a row: *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

// one reads one row; none is control.ErrNoRecord.
func one[T any](ctx context.Context, s *statements, scan func(scanner) (T, error), query string, args ...any) (T, error) {
	var zero T
	stmt, err := s.get(ctx, query)
	if err != nil {
		return zero, err
	}
	v, err := scan(stmt.QueryRowContext(ctx, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return zero, control.ErrNoRecord
	}
	if err != nil {
		return zero, err
	}
	return v, nil
}

// many reads all rows.
func many[T any](ctx context.Context, s *statements, scan func(scanner) (T, error), query string, args ...any) (_ []T, err error) {
	stmt, err := s.get(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
