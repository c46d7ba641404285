package storetest

import (
	"fmt"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
)

func sessions(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	want := f.addSession(1, e.ID)
	got, err := f.Session(f.ctx, "w1", want.ID)
	f.ok(err)
	f.same(got, want)
	_, err = f.Session(f.ctx, "w2", want.ID)
	f.fails(err, control.ErrNoRecord)
	f.fails(f.CreateSession(f.ctx, want), control.ErrDuplicate)

	want.Status, want.Document, want.UpdatedAt, want.AgentVersion = "running", []byte(`{"a":1}`), at(3), 2
	got, err = f.UpdateSession(f.ctx, "w1", want.ID, func(r *control.SessionRecord) (bool, error) {
		*r = want
		r.Environment = "env_other" // not alterable
		return true, nil
	})
	f.ok(err)
	f.same(got, want)
	_, err = f.UpdateSession(f.ctx, "w2", want.ID, func(*control.SessionRecord) (bool, error) { return true, nil })
	f.fails(err, control.ErrNoRecord)

	elsewhere := want
	elsewhere.ID, elsewhere.Workspace = "sesn_elsewhere", "w2"
	f.fails(f.CreateSession(f.ctx, elsewhere), control.ErrNoRecord) // the environment is w1's
	elsewhere.Workspace, elsewhere.Environment = "w1", "env_none"
	f.fails(f.CreateSession(f.ctx, elsewhere), control.ErrNoRecord)
	f.archiveEnv(e.ID, at(9))
	elsewhere.Environment = e.ID
	f.fails(f.CreateSession(f.ctx, elsewhere), control.ErrStale)

	f.fails(f.DeleteSession(f.ctx, "w2", want.ID, anyway), control.ErrNoRecord)
	f.ok(f.DeleteSession(f.ctx, "w1", want.ID, anyway))
	f.fails(f.DeleteSession(f.ctx, "w1", want.ID, anyway), control.ErrNoRecord)
}

func sessionLists(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	statuses := []string{"idle", "running", "terminated"}
	var all []control.SessionRecord
	for n := range 18 {
		all = append(all, f.addSession(n, e.ID, func(r *control.SessionRecord) {
			r.Agent, r.AgentVersion, r.Status = fmt.Sprintf("agent_%d", n%2), n%4, statuses[n%3]
			if n >= 15 {
				r.ArchivedAt = at(99)
			}
		}))
	}
	keep := func(ok func(n int, r control.SessionRecord) bool) (out []control.SessionRecord) {
		for n, r := range all {
			if ok(n, r) {
				out = append(out, r)
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		filter control.SessionFilter
		ok     func(n int, r control.SessionRecord) bool
	}{
		"none":     {control.SessionFilter{}, func(n int, _ control.SessionRecord) bool { return n < 15 }},
		"archived": {control.SessionFilter{IncludeArchived: true}, func(int, control.SessionRecord) bool { return true }},
		"agent": {control.SessionFilter{Agent: "agent_1", IncludeArchived: true},
			func(_ int, r control.SessionRecord) bool { return r.Agent == "agent_1" }},
		"version": {control.SessionFilter{Agent: "agent_1", AgentVersion: 3},
			func(n int, r control.SessionRecord) bool { return n < 15 && n%4 == 3 }},
		"statuses": {control.SessionFilter{Statuses: []string{"idle", "terminated"}},
			func(n int, r control.SessionRecord) bool { return n < 15 && r.Status != "running" }},
		"open range": {control.SessionFilter{CreatedGT: at(2), CreatedLT: at(9)},
			func(n int, _ control.SessionRecord) bool { return n > 2 && n < 9 }},
		"closed range": {control.SessionFilter{CreatedGTE: at(2), CreatedLTE: at(9)},
			func(n int, _ control.SessionRecord) bool { return n >= 2 && n <= 9 }},
		"contradiction": {control.SessionFilter{CreatedGT: at(9), CreatedLT: at(2)},
			func(int, control.SessionRecord) bool { return false }},
	} {
		got := pages(f, 2, true, func(r control.SessionRecord) control.Mark {
			return control.Mark{CreatedAt: r.CreatedAt, ID: r.ID}
		}, func(p control.Page) ([]control.SessionRecord, bool, error) {
			return f.ListSessions(f.ctx, "w1", c.filter, p)
		})
		t.Log(name)
		f.same(got, keep(c.ok))
	}
}

func liveSessions(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	f.addEnv(2, func(r *control.EnvironmentRecord) { r.Workspace = "w2" })
	want := map[string]bool{}
	for n := range 450 { // more than an implementation is likely to read at a time
		rec := f.addSession(n, e.ID, func(r *control.SessionRecord) {
			if n == 7 {
				r.Workspace, r.Environment = "w2", "env_00002"
			}
			if n%5 == 0 {
				r.ArchivedAt = at(1)
			}
		})
		if n%5 != 0 {
			want[rec.ID] = true
		}
	}
	got := map[string]bool{}
	for _, rec := range each(f, f.LiveSessions) {
		got[rec.ID] = true
	}
	f.same(got, want)
	// The walk may be used to change what it walks over.
	f.ok(f.LiveSessions(f.ctx, func(r control.SessionRecord) error {
		return f.DeleteSession(f.ctx, r.Workspace, r.ID, anyway)
	}))
	f.same(each(f, f.LiveSessions), []control.SessionRecord{})
}
