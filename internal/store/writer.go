package store

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"github.com/atoll-run/atoll/internal/control"
)

// maxGroup bounds how many writes share a commit, and so how long the first of
// them waits for the others.
const maxGroup = 256

// writer owns the one connection that writes. While a commit waits for the
// disk, further writes gather; the next commit takes them all.
type writer struct {
	log   *slog.Logger
	db    *sql.DB
	conn  *sql.Conn
	tx    *statements
	queue chan *request
	stop  chan struct{} // closed to end the loop
	done  chan struct{} // closed when it has ended

	goroutine atomic.Pointer[[]byte] // the loop's own, to find nested writes
	// failCommit, when a test sets it, is asked before each commit.
	failCommit func() error
}

// request is one write. Exactly one side claims it: the loop, to run it, or
// its caller, to give it up; so a caller that got its context's error knows that
// nothing was written.
type request struct {
	ctx     context.Context
	apply   func(tx *statements) error
	claimed atomic.Bool
	err     error
	done    chan struct{}
}

func startWriter(ctx context.Context, path string, log *slog.Logger) (_ *writer, err error) {
	w := &writer{log: log, queue: make(chan *request), stop: make(chan struct{}), done: make(chan struct{})}
	if w.db, err = openPool(path, true, 1); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.disconnect()
			_ = w.db.Close()
		}
	}()
	if err := w.connect(ctx); err != nil {
		return nil, err
	}
	if err := migrate(ctx, w.conn, embedded()); err != nil {
		return nil, err
	}
	go w.run()
	return w, nil
}

// connect makes sure that there is a connection.
func (w *writer) connect(ctx context.Context) (err error) {
	if w.conn != nil {
		return nil
	}
	if w.conn, err = w.db.Conn(ctx); err != nil {
		w.conn = nil
		return err
	}
	w.tx = newStatements(w.conn.PrepareContext)
	return nil
}

// disconnect throws the connection away, and with it whatever it had not
// committed.
func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	w.tx.close()
	_ = w.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = w.conn.Close()
	w.conn, w.tx = nil, nil
}

func (w *writer) close() error {
	close(w.stop)
	<-w.done
	w.disconnect()
	return w.db.Close()
}

// write runs apply in a transaction and returns when that is on the disk, or
// with the reason why it did not happen. apply runs on the writer's goroutine and
// must not write by itself; that panics.
func (w *writer) write(ctx context.Context, apply func(tx *statements) error) error {
	if own := w.goroutine.Load(); own != nil && bytes.Equal(*own, goroutineID()) {
		panic("store: a write inside a write")
	}
	r := &request{ctx: ctx, apply: apply, done: make(chan struct{})}
	select {
	case w.queue <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.stop:
		return ErrClosed
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		if r.claimed.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		<-r.done // it has begun: a moment later its outcome is known
		return r.err
	}
}

// run is the loop.
func (w *writer) run() {
	defer close(w.done)
	id := goroutineID()
	w.goroutine.Store(&id)
	group := make([]*request, 0, maxGroup)
	for {
		select {
		case r := <-w.queue:
			group = append(group[:0], r)
		case <-w.stop:
			return
		}
		runtime.Gosched() // lets callers that the last commit woke come back
	gather:
		for len(group) < maxGroup {
			select {
			case r := <-w.queue:
				group = append(group, r)
			default:
				break gather
			}
		}
		w.flush(group)
	}
}

// flush runs a group and answers each of it.
func (w *writer) flush(group []*request) {
	live := group[:0]
	for _, r := range group {
		if err := r.ctx.Err(); r.claimed.CompareAndSwap(false, true) {
			if err == nil {
				live = append(live, r)
				continue
			}
			r.err = err
			close(r.done)
		}
	}
	if len(live) == 0 {
		return
	}
	if err := w.transact(live); err != nil {
		w.log.Error("write failed", "writes", len(live), "error", err)
		err = diskFull(err)
		for _, r := range live {
			r.err = err
		}
	}
	for _, r := range live {
		close(r.done)
	}
}

// transact applies the group in one transaction. Each write's own refusal is
// left in its request; a returned error means that none of them happened.
func (w *writer) transact(group []*request) (err error) {
	// The callers' contexts are not used inside: an interrupted statement would
	// undo the whole group.
	ctx := context.Background()
	if err := w.connect(ctx); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	if _, err := w.tx.exec(ctx, sqlBegin); err != nil {
		w.disconnect()
		return fmt.Errorf("beginning: %w", err)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a write: %v", p)
			w.log.Error("panic in a write", "panic", p, "stack", string(debug.Stack()))
		}
		if err == nil {
			return
		}
		if _, undo := w.tx.exec(ctx, sqlRollback); undo != nil {
			w.disconnect()
		}
	}()
	kept := 0
	for _, r := range group {
		if err := w.apply(ctx, r, len(group) > 1); err != nil {
			return err
		}
		if r.err == nil {
			kept++
		}
	}
	if kept == 0 {
		if _, err := w.tx.exec(ctx, sqlRollback); err != nil {
			return fmt.Errorf("rolling back: %w", err)
		}
		return nil
	}
	if w.failCommit != nil {
		if err := w.failCommit(); err != nil {
			return fmt.Errorf("committing: %w", err)
		}
	}
	if _, err := w.tx.exec(ctx, sqlCommit); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// apply runs one write, with a savepoint when others share its transaction.
func (w *writer) apply(ctx context.Context, r *request, shared bool) error {
	if shared {
		if _, err := w.tx.exec(ctx, sqlSavepoint); err != nil {
			return fmt.Errorf("setting savepoint: %w", err)
		}
	}
	r.err = r.apply(w.tx)
	if r.err != nil && breaksTransaction(r.err) {
		return r.err
	}
	if !shared {
		return nil
	}
	if r.err != nil {
		if _, err := w.tx.exec(ctx, sqlUndoSavepoint); err != nil {
			return fmt.Errorf("undoing: %w", err)
		}
	}
	if _, err := w.tx.exec(ctx, sqlRelease); err != nil {
		return fmt.Errorf("releasing savepoint: %w", err)
	}
	return nil
}

// goroutineID names the calling goroutine, from the head of its stack trace
// ("goroutine 7 [running]:"): a microsecond that turns a deadlock into a panic.
func goroutineID() []byte {
	buf := make([]byte, 32)
	buf = buf[:runtime.Stack(buf, false)]
	id, _, _ := bytes.Cut(bytes.TrimPrefix(buf, []byte("goroutine ")), []byte(" "))
	return id
}

// write is writer.write with a value. The value is nothing unless err is nil.
func write[T any](ctx context.Context, s *Store, apply func(tx *statements) (T, error)) (out T, err error) {
	err = s.writes.write(ctx, func(tx *statements) (err error) {
		out, err = apply(tx)
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

// amend changes the database's words for a broken rule into this package's.
// A rule of uniqueness is a duplicate, a reference answers whatever is passed.
func amend(err error, reference error) error {
	switch violationOf(err) {
	case uniqueViolation:
		return control.ErrDuplicate
	case foreignViolation:
		return reference
	}
	return err
}
