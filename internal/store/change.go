package store

import (
	"context"
	"fmt"
)

// revise reads a record, lets change alter it, and puts it where it did, all in
// one transaction. It answers the record as it stands then. The error of change
// refuses all and goes back as it came.
func revise[T any](ctx context.Context, s *Store, doing string, read func(context.Context, *statements) (T, error),
	change func(*T) (altered bool, err error), put func(ctx context.Context, tx *statements, old, rec T) (T, error)) (T, error) {
	var refused error
	rec, err := write(ctx, s, func(tx *statements) (T, error) {
		ctx := context.Background() // a transaction is not left half-way
		old, err := read(ctx, tx)
		if err != nil {
			return old, err
		}
		rec := old
		altered, err := change(&rec)
		if err != nil || !altered {
			refused = err
			return old, err
		}
		return put(ctx, tx, old, rec)
	})
	return rec, wrapUnless(refused, doing, err)
}

// wrap says what was being done.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// wrapUnless wraps, except the error of a caller's own function, which goes
// back as it came.
func wrapUnless(own error, doing string, err error) error {
	if own != nil {
		return own
	}
	return wrap(doing, err)
}
