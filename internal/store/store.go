// Package store remembers: it keeps workspaces, keys, environments, agents,
// sessions and builds in one SQLite database, and implements [control.Store].
//
// What a method acknowledged is on the disk. All writes go through one
// goroutine that commits them in groups: each is applied or refused on its own,
// but when the commit of a group fails, every write of the group is answered
// with that error and none has happened. After such a failure (a full disk, say)
// the store goes on: later writes succeed once the cause is gone. Reads run
// beside the writes and see everything acknowledged before they began.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/durable"
)

// ErrLocked says that another process (or another Store of this one) has the
// database open.
var ErrLocked = errors.New("database is in use")

// ErrClosed answers what is asked of a closed Store.
var ErrClosed = errors.New("store is closed")

// ErrNewer says that a newer Atoll has changed the database in ways that this
// one does not know.
var ErrNewer = errors.New("database belongs to a newer version")

// Config of a Store.
type Config struct {
	// Path of the database file; it is created, with mode 0600, when missing.
	// Its directory must exist. SQLite and the lock keep files beside it. Required.
	Path string
	// Logger takes what cannot be returned; nil discards it.
	Logger *slog.Logger
	// Readers is how many reads run at the same time; 0 means 4.
	Readers int
}

// Store is an open database. Its methods may be called at the same time.
type Store struct {
	log    *slog.Logger
	lock   *os.File
	reads  *sql.DB
	read   *statements
	writes *writer

	closing sync.Once
	closed  error
}

var _ control.Store = (*Store)(nil)

// Open opens the database, creating or migrating it as needed. It answers an
// error that is ErrLocked when somebody else has it open, ErrNewer when it must
// not be touched by this version.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if cfg.Path == "" {
		return nil, errors.New("opening store: no path given")
	}
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s := &Store{log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening store %s: %w", path, err)
			_ = s.Close()
		}
	}()
	if s.lock, err = acquire(path); err != nil {
		return nil, err
	}
	if err := create(path); err != nil {
		return nil, err
	}
	if s.writes, err = startWriter(ctx, path, s.log); err != nil {
		return nil, err
	}
	readers := cfg.Readers
	if readers <= 0 {
		readers = 4
	}
	if s.reads, err = openPool(path, false, readers); err != nil {
		return nil, err
	}
	s.read = newStatements(s.reads.PrepareContext)
	if err := s.reads.PingContext(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Close waits for the writes that have begun, refuses the rest and releases
// the database. A second call answers what the first did.
func (s *Store) Close() error {
	s.closing.Do(func() {
		var errs []error
		if s.reads != nil {
			s.read.close()
			errs = append(errs, s.reads.Close())
		}
		if s.writes != nil {
			errs = append(errs, s.writes.close())
		}
		if s.lock != nil {
			errs = append(errs, s.lock.Close())
		}
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

// create makes an empty database file that only its owner may read, and makes
// its name durable.
func create(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
