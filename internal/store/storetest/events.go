package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// event is an event as it is given to a store.
func event(id, kind string, when time.Time) control.EventRecord {
	return control.EventRecord{ID: id, Type: kind, CreatedAt: when, ProcessedAt: when, Fields: []byte(fmt.Sprintf(`{"text":%q}`, id+"ü\u2028"))}
}

// change makes a change that must succeed.
func (f *fixture) change(session string, change control.LogChange) control.LogChange {
	f.t.Helper()
	made, err := f.ChangeLog(f.ctx, "w1", session, func(control.LogState) (control.LogChange, error) { return change, nil })
	f.ok(err)
	return made
}

func (f *fixture) log(session string) []control.EventRecord {
	f.t.Helper()
	events, more, err := f.Events(f.ctx, session, control.EventFilter{}, control.EventPage{Limit: 1000})
	f.ok(err)
	if more {
		f.t.Fatal("more than a thousand events")
	}
	return events
}

func (f *fixture) queue(session string) []control.EventRecord {
	f.t.Helper()
	events, err := f.QueuedEvents(f.ctx, session)
	f.ok(err)
	return events
}

func idsOf(events []control.EventRecord) (ids []string) {
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

func events(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	s, other := f.addSession(1, e.ID), f.addSession(2, e.ID)

	queued := f.change(s.ID, control.LogChange{Queue: []control.EventRecord{event("q1", "user.message", at(1)), event("q2", "user.interrupt", at(1))}})
	f.same(idsOf(f.queue(s.ID)), []string{"q1", "q2"})
	f.same(queued.Session, &s)
	for i, q := range f.queue(s.ID) {
		want := queued.Queue[i]
		want.ProcessedAt = time.Time{}
		f.same(q, want)
		if q.Place == 0 || q.Seq != 0 || q.Session != s.ID {
			t.Fatalf("queued as %+v", q)
		}
	}
	if f.queue(s.ID)[0].Place >= f.queue(s.ID)[1].Place {
		t.Error("places do not grow")
	}

	// The second of the queue is taken first, between two new events.
	row := s
	row.Status, row.UpdatedAt = "running", at(2)
	private := event("a", "agent.message", at(2))
	private.Private = []byte(`{"signature":"x"}`)
	taken := control.EventRecord{ID: "q2", Type: "other", ProcessedAt: at(2), Fields: []byte(`{"other":1}`), Private: []byte(`[]`)}
	made := f.change(s.ID, control.LogChange{Session: &row, Log: []control.EventRecord{private, taken, event("b", "session.error", at(2))}})
	f.same(*made.Session, row)
	log := f.log(s.ID)
	f.same(log, made.Log)
	f.same(idsOf(log), []string{"a", "q2", "b"})
	f.same(log[1].Fields, event("q2", "", at(0)).Fields)
	f.same([]any{log[1].Type, log[1].CreatedAt, string(log[1].Private), log[1].Place, string(log[0].Private), log[0].Place},
		[]any{"user.interrupt", at(1), "[]", queued.Queue[1].Place, `{"signature":"x"}`, int64(0)})
	for i, e := range log {
		if e.Seq != int64(i+1) || i > 0 && !e.ProcessedAt.After(log[i-1].ProcessedAt) {
			t.Errorf("event %d is %d at %v", i, e.Seq, e.ProcessedAt)
		}
	}
	f.same(idsOf(f.queue(s.ID)), []string{"q1"})
	// A clock that goes back does not turn the order round.
	late := f.change(s.ID, control.LogChange{Log: []control.EventRecord{event("c", "agent.message", at(0))}}).Log[0]
	if !late.ProcessedAt.After(log[2].ProcessedAt) || late.Seq != 4 {
		t.Errorf("after a clock went back: %+v", late)
	}

	last, err := f.LastEvent(f.ctx, s.ID)
	f.ok(err)
	none, err := f.LastEvent(f.ctx, other.ID)
	f.ok(err)
	f.same([]int64{last, none}, []int64{4, 0})
	for _, id := range []string{"q1", "q2", "a"} {
		found, err := f.Event(f.ctx, s.ID, id)
		f.ok(err)
		f.same(found.ID, id)
		_, err = f.Event(f.ctx, other.ID, id)
		f.fails(err, control.ErrNoRecord)
	}

	f.ok(f.DeleteSession(f.ctx, "w1", s.ID, anyway))
	f.same(append(f.log(s.ID), f.queue(s.ID)...), []control.EventRecord{})
	_, err = f.Event(f.ctx, s.ID, "a")
	f.fails(err, control.ErrNoRecord)
	// Places are not used again, not even when the queue is empty.
	again := f.change(other.ID, control.LogChange{Queue: []control.EventRecord{event("q3", "user.message", at(3))}})
	if again.Queue[0].Place <= queued.Queue[1].Place {
		t.Errorf("place %d after %d", again.Queue[0].Place, queued.Queue[1].Place)
	}
}

func refusedChanges(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	s := f.addSession(1, e.ID)
	f.change(s.ID, control.LogChange{Log: []control.EventRecord{event("a", "agent.message", at(1))}, Queue: []control.EventRecord{event("q", "user.message", at(1))}})
	log, queue := f.log(s.ID), f.queue(s.ID)
	own := errors.New("own")
	row := s
	row.Status = "running"
	gone := event("gone", "user.message", at(2))
	gone.Place = 99
	broken := event("broken", "agent.message", at(2))
	broken.Fields = []byte("{")
	fresh := event("fresh", "agent.message", at(2))
	for name, c := range map[string]struct {
		change control.LogChange
		want   error // nil: any
		own    error
	}{
		"own error":         {control.LogChange{Log: []control.EventRecord{fresh}}, own, own},
		"id in the log":     {control.LogChange{Session: &row, Log: []control.EventRecord{fresh, event("a", "agent.message", at(2))}}, control.ErrDuplicate, nil},
		"id in the queue":   {control.LogChange{Session: &row, Queue: []control.EventRecord{event("q", "user.message", at(2))}}, control.ErrDuplicate, nil},
		"gone from queue":   {control.LogChange{Session: &row, Log: []control.EventRecord{fresh, gone}}, control.ErrNoRecord, nil},
		"fields not JSON":   {control.LogChange{Session: &row, Log: []control.EventRecord{fresh, broken}}, nil, nil},
		"a queue not JSON":  {control.LogChange{Log: []control.EventRecord{fresh}, Queue: []control.EventRecord{broken}}, nil, nil},
		"an unknown status": {control.LogChange{Session: &control.SessionRecord{Status: "asleep"}, Log: []control.EventRecord{fresh}}, nil, nil},
	} {
		_, err := f.ChangeLog(f.ctx, "w1", s.ID, func(state control.LogState) (control.LogChange, error) {
			waiting, err := state.Queued()
			f.ok(err)
			f.same(waiting, queue)
			f.same([]any{state.Last, state.Session}, []any{int64(1), s})
			return c.change, c.own
		})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		f.same(f.log(s.ID), log)
		f.same(f.queue(s.ID), queue)
	}
	nothing := func(control.LogState) (control.LogChange, error) { return control.LogChange{}, nil }
	_, err := f.ChangeLog(f.ctx, "w2", s.ID, nothing)
	f.fails(err, control.ErrNoRecord)
	_, err = f.ChangeLog(f.ctx, "w1", "sesn_none", nothing)
	f.fails(err, control.ErrNoRecord)
	got, err := f.Session(f.ctx, "w1", s.ID)
	f.ok(err)
	f.same(got, s)
	f.fails(f.DeleteSession(f.ctx, "w1", s.ID, func(rec control.SessionRecord) error { f.same(rec, s); return own }), own)
	f.same(f.log(s.ID), log)
	// A session's first events are stored with it or not at all.
	bad := s
	bad.ID = "sesn_new"
	f.fails(f.CreateSession(f.ctx, bad, event("new", "user.message", at(1)), event("q", "user.message", at(1))), control.ErrDuplicate)
	_, err = f.Session(f.ctx, "w1", bad.ID)
	f.fails(err, control.ErrNoRecord)
	f.ok(f.CreateSession(f.ctx, bad, event("new", "user.message", at(1)), event("new2", "user.message", at(1))))
	f.same(idsOf(f.queue(bad.ID)), []string{"new", "new2"})
}

func eventPages(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	s, other := f.addSession(1, e.ID), f.addSession(2, e.ID)
	kinds := []string{"agent.message", "agent.tool_use", "session.error"}
	for n := range 40 {
		f.change(s.ID, control.LogChange{Log: []control.EventRecord{event(fmt.Sprintf("e%02d", n), kinds[n%3], at(n))}})
		f.change(other.ID, control.LogChange{Log: []control.EventRecord{event(fmt.Sprintf("o%02d", n), kinds[n%3], at(n))}})
	}
	all := f.log(s.ID)
	for name, c := range map[string]struct {
		filter control.EventFilter
		ok     func(n int) bool
	}{
		"all":    {control.EventFilter{}, func(int) bool { return true }},
		"types":  {control.EventFilter{Types: []string{"agent.tool_use", "session.error"}}, func(n int) bool { return n%3 != 0 }},
		"open":   {control.EventFilter{CreatedGT: at(5), CreatedLT: at(20)}, func(n int) bool { return n > 5 && n < 20 }},
		"closed": {control.EventFilter{CreatedGTE: at(5), CreatedLTE: at(20)}, func(n int) bool { return n >= 5 && n <= 20 }},
		"both":   {control.EventFilter{Types: kinds[:1], CreatedGTE: at(30)}, func(n int) bool { return n%3 == 0 && n >= 30 }},
		"none":   {control.EventFilter{Types: []string{"user.message"}}, func(int) bool { return false }},
	} {
		var want []control.EventRecord
		for n, e := range all {
			if c.ok(n) {
				want = append(want, e)
			}
		}
		for _, descending := range []bool{false, true} {
			var got []control.EventRecord
			page := control.EventPage{Limit: 7, Descending: descending}
			for more := true; more; {
				var rows []control.EventRecord
				var err error
				rows, more, err = f.Events(f.ctx, s.ID, c.filter, page)
				f.ok(err)
				if len(rows) > 7 || more && len(rows) < 7 {
					t.Fatalf("%s: a page of %d, more %t", name, len(rows), more)
				}
				if got = append(got, rows...); len(rows) > 0 {
					page.After = rows[len(rows)-1].Seq
				}
			}
			if descending {
				slices.Reverse(got)
			}
			t.Log(name)
			f.same(got, want)
		}
	}
	size := len(all[0].Fields)
	for bytes, want := range map[int]int{1: 1, size: 1, size + 1: 2, 10 * size: 10, 1000 * size: 40} {
		rows, more, err := f.Events(f.ctx, s.ID, control.EventFilter{}, control.EventPage{Limit: 100, Bytes: bytes})
		f.ok(err)
		if len(rows) != want || more != (want < 40) {
			t.Errorf("%d events in %d bytes, more %t; want %d", len(rows), bytes, more, want)
		}
	}
}

func activeSessions(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	var want []string
	for n := range 420 {
		s := f.addSession(n, e.ID, func(r *control.SessionRecord) {
			r.Status = []string{"idle", "running", "rescheduling", "terminated", "idle", "running"}[n%6]
			if n%6 == 5 {
				r.ArchivedAt = at(1)
			}
		})
		if n%6 == 4 {
			f.change(s.ID, control.LogChange{Queue: []control.EventRecord{event(fmt.Sprintf("q%d", n), "user.message", at(1))}})
		}
		if m := n % 6; m == 1 || m == 2 || m == 4 {
			want = append(want, s.ID)
		}
	}
	got := []string{}
	for _, rec := range each(f, f.ActiveSessions) {
		got = append(got, rec.ID)
	}
	f.same(got, want)
}

// eventRace appends to one log from many sides: none is lost, none is twice.
func eventRace(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	s := f.addSession(1, e.ID)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 20 {
				id := fmt.Sprintf("%d-%02d", g, n)
				change := control.LogChange{Log: []control.EventRecord{event(id, "agent.message", at(n)), event(id+"b", "agent.message", at(n))}}
				if n%4 == 3 {
					change = control.LogChange{Queue: []control.EventRecord{event(id, "user.message", at(n))}}
				}
				if _, err := f.ChangeLog(f.ctx, "w1", s.ID, func(control.LogState) (control.LogChange, error) { return change, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	log := f.log(s.ID)
	seen := map[string]bool{}
	for i, e := range log {
		if e.Seq != int64(i+1) || seen[e.ID] || i > 0 && !e.ProcessedAt.After(log[i-1].ProcessedAt) {
			t.Fatalf("event %d: %+v", i, e)
		}
		seen[e.ID] = true
		if n := len(e.ID); e.ID[n-1] == 'b' && log[i-1].ID != e.ID[:n-1] {
			t.Fatalf("%s does not follow its other half", e.ID)
		}
	}
	if len(log) != 8*15*2 || len(f.queue(s.ID)) != 8*5 {
		t.Errorf("%d in the log, %d in the queue", len(log), len(f.queue(s.ID)))
	}
}
