package store

// This file holds all that would differ with another database: opening and
// pragmas, the words of transactions, and error codes. The schema's DDL
// (migrations/) is SQLite's too; the other files use what it and Postgres share.

import (
	"database/sql"
	"errors"
	"net/url"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/atoll-run/atoll/internal/control"
)

// The words of transactions. IMMEDIATE takes the write lock at once, so that
// nothing read inside can be overtaken before it is written.
const (
	sqlBegin         = "BEGIN IMMEDIATE"
	sqlCommit        = "COMMIT"
	sqlRollback      = "ROLLBACK"
	sqlSavepoint     = "SAVEPOINT one"
	sqlRelease       = "RELEASE one"
	sqlUndoSavepoint = "ROLLBACK TO one"
)

// openPool opens the database for the writer or for readers. WAL lets readers
// go on beside the writer; synchronous FULL makes every commit wait for the
// disk; a checkpoint every 8000 pages (32 MiB) costs a third less than the
// default's every 1000 under a stream of small commits.
func openPool(path string, write bool, conns int) (*sql.DB, error) {
	pragmas := url.Values{"_pragma": {
		"busy_timeout(10000)",
		"journal_mode(WAL)",
		"synchronous(FULL)",
		"foreign_keys(1)",
		"wal_autocheckpoint(8000)",
		"journal_size_limit(67108864)",
		"temp_store(MEMORY)",
	}}
	if !write {
		pragmas.Add("_pragma", "query_only(1)")
	}
	name := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: pragmas.Encode()}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// violation is which of the schema's rules an error says was broken.
type violation int

const (
	noViolation violation = iota
	uniqueViolation
	foreignViolation
	otherViolation
)

func violationOf(err error) violation {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return noViolation
	}
	switch e.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
		return uniqueViolation
	case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
		return foreignViolation
	}
	if e.Code()&0xff == sqlite3.SQLITE_CONSTRAINT {
		return otherViolation
	}
	return noViolation
}

// diskFull makes an error of a full disk one that the caller is told of; others
// stay as they are.
func diskFull(err error) error {
	var e *sqlite.Error
	full := errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL
	if !full && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return &control.Fault{Kind: control.Unavailable, Cause: err,
		Message: "The server's disk is full: nothing was written. Try again when its operator has made room."}
}

// breaksTransaction tells errors after which the whole transaction cannot be
// relied on: all of the database's own except a broken rule. On a full disk, for
// one, SQLite may already have rolled everything back.
func breaksTransaction(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && violationOf(err) == noViolation
}
