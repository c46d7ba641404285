package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// micros is how a time is stored.
func micros(t time.Time) int64 { return t.UnixMicro() }

// optional is how a time that may be missing (zero) is stored.
func optional(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func moment(us int64) time.Time { return time.UnixMicro(us).UTC() }

func optionalMoment(us sql.NullInt64) time.Time {
	if !us.Valid {
		return time.Time{}
	}
	return moment(us.Int64)
}

// list is a query in the making: conditions that are all to hold, in terms of
// the columns created_at and id.
type list struct {
	selects string // up to and without WHERE
	conds   []string
	args    []any
}

// where adds a condition; each %d in it stands for the number of one of args.
func (l *list) where(cond string, args ...any) {
	numbers := make([]any, len(args))
	for i := range args {
		numbers[i] = len(l.args) + i + 1
	}
	l.conds = append(l.conds, fmt.Sprintf(cond, numbers...))
	l.args = append(l.args, args...)
}

// between adds limits of the creation time; zero ones do not limit.
func (l *list) between(gt, gte, lt, lte time.Time) { l.within("created_at", gt, gte, lt, lte) }

// within adds limits of a time.
func (l *list) within(column string, gt, gte, lt, lte time.Time) {
	for _, b := range []struct {
		op string
		at time.Time
	}{{">", gt}, {">=", gte}, {"<", lt}, {"<=", lte}} {
		if !b.at.IsZero() {
			l.where(column+" "+b.op+" $%d", micros(b.at))
		}
	}
}

// fetch reads one page: in the page's order, with whether there is more in its
// direction. Position is by value, never by offset, so that a page costs the same
// anywhere in a list of any length.
func fetch[T any](ctx context.Context, s *statements, l list, page control.Page, scan func(scanner) (T, error)) (_ []T, more bool, err error) {
	ascending, from := page.Ascending, page.After
	if page.Before != nil {
		ascending, from = !ascending, page.Before
	}
	op, order := "<", "DESC"
	if ascending {
		op, order = ">", "ASC"
	}
	if page.Inclusive {
		op += "="
	}
	if from != nil {
		l.where("(created_at, id) "+op+" ($%d, $%d)", micros(from.CreatedAt), from.ID)
	}
	limit := max(page.Limit, 0)
	query := fmt.Sprintf("%s WHERE %s ORDER BY created_at %s, id %s LIMIT $%d",
		l.selects, strings.Join(l.conds, " AND "), order, order, len(l.args)+1)
	rows, err := many(ctx, s, scan, query, append(l.args, limit+1)...)
	if err != nil {
		return nil, false, err
	}
	if more = len(rows) > limit; more {
		rows = rows[:limit]
	}
	if page.Before != nil {
		slices.Reverse(rows)
	}
	return rows, more, nil
}

// batch is how many rows are held in memory where all are visited.
const batch = 200

// walk visits what a query finds, in batches: its $1 is the id behind which it
// goes on, in order, its $2 how many rows it may answer. Nothing is held open
// while each runs, so each may call the store; its error ends the walk and is
// returned as it is.
func walk[T any](ctx context.Context, s *Store, doing string, scan func(scanner) (T, error), query string, id func(T) string, each func(T) error) error {
	for last := ""; ; {
		recs, err := many(ctx, s.read, scan, query, last, batch)
		if err != nil {
			return wrap(doing, err)
		}
		for _, rec := range recs {
			if err := each(rec); err != nil {
				return err
			}
			last = id(rec)
		}
		if len(recs) < batch {
			return nil
		}
	}
}
