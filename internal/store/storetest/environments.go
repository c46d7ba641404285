package storetest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

func environments(t *testing.T, f *fixture) {
	want := f.addEnv(1)
	got, err := f.Environment(f.ctx, "w1", want.ID)
	f.ok(err)
	f.same(got, want)

	_, err = f.Environment(f.ctx, "w2", want.ID)
	f.fails(err, control.ErrNoRecord)
	_, err = f.Environment(f.ctx, "w1", "env_other")
	f.fails(err, control.ErrNoRecord)
	_, err = f.UpdateEnvironment(f.ctx, "w2", want.ID, func(*control.EnvironmentRecord) (bool, error) {
		t.Error("change was called for another workspace's record")
		return false, nil
	})
	f.fails(err, control.ErrNoRecord)

	got, err = f.UpdateEnvironment(f.ctx, "w1", want.ID, func(r *control.EnvironmentRecord) (bool, error) {
		r.Name = "not written"
		return false, nil
	})
	f.ok(err)
	f.same(got, want)
	own := errors.New("own")
	_, err = f.UpdateEnvironment(f.ctx, "w1", want.ID, func(r *control.EnvironmentRecord) (bool, error) {
		r.Name = "not written"
		return true, own
	})
	if err != own {
		t.Errorf("error = %v, want change's own as it is", err)
	}
	got, err = f.Environment(f.ctx, "w1", want.ID)
	f.ok(err)
	f.same(got, want)

	want.Name, want.Document, want.UpdatedAt = "other", []byte(`{"n":2}`), at(9)
	got, err = f.UpdateEnvironment(f.ctx, "w1", want.ID, func(r *control.EnvironmentRecord) (bool, error) {
		r.Name, r.Document, r.UpdatedAt = want.Name, want.Document, want.UpdatedAt
		r.ID, r.Workspace, r.CreatedAt = "ignored", "w2", at(99)
		return true, nil
	})
	f.ok(err)
	f.same(got, want)
	got, err = f.Environment(f.ctx, "w1", want.ID)
	f.ok(err)
	f.same(got, want)
}

func environmentNames(t *testing.T, f *fixture) {
	first := f.addEnv(1)
	second := env(2)
	second.Name = first.Name
	f.fails(f.CreateEnvironment(f.ctx, second), control.ErrDuplicate)
	second.Workspace = "w2"
	f.ok(f.CreateEnvironment(f.ctx, second))
	f.fails(f.CreateEnvironment(f.ctx, first), control.ErrDuplicate)

	third := f.addEnv(3)
	rename := func(r *control.EnvironmentRecord) (bool, error) { r.Name = first.Name; return true, nil }
	_, err := f.UpdateEnvironment(f.ctx, "w1", third.ID, rename)
	f.fails(err, control.ErrDuplicate)
	// The name of an archived environment is free again, and stays with it.
	f.archiveEnv(first.ID, at(20))
	_, err = f.UpdateEnvironment(f.ctx, "w1", third.ID, rename)
	f.ok(err)
	_, err = f.UpdateEnvironment(f.ctx, "w1", first.ID, func(r *control.EnvironmentRecord) (bool, error) {
		r.ArchivedAt = time.Time{}
		return true, nil
	})
	f.fails(err, control.ErrDuplicate)
}

func environmentDeletion(t *testing.T, f *fixture) {
	e := f.addEnv(1)
	f.ok(f.PutBuild(f.ctx, control.BuildRecord{Environment: e.ID, Status: "ready"}, func(control.EnvironmentRecord) bool { return true }))
	s := f.addSession(1, e.ID)
	f.fails(f.DeleteEnvironment(f.ctx, "w2", e.ID), control.ErrNoRecord)
	f.fails(f.DeleteEnvironment(f.ctx, "w1", e.ID), control.ErrInUse)
	_, err := f.UpdateSession(f.ctx, "w1", s.ID, func(r *control.SessionRecord) (bool, error) {
		r.ArchivedAt = at(5)
		return true, nil
	})
	f.ok(err)
	f.fails(f.DeleteEnvironment(f.ctx, "w1", e.ID), control.ErrInUse)
	f.ok(f.DeleteSession(f.ctx, "w1", s.ID, anyway))
	f.ok(f.DeleteEnvironment(f.ctx, "w1", e.ID))
	f.fails(f.DeleteEnvironment(f.ctx, "w1", e.ID), control.ErrNoRecord)
	_, err = f.Build(f.ctx, e.ID)
	f.fails(err, control.ErrNoRecord)
}

func environmentPages(t *testing.T, f *fixture) {
	var all, live []control.EnvironmentRecord
	for n := range 23 {
		rec := f.addEnv(n, func(r *control.EnvironmentRecord) { r.CreatedAt = at(n / 4) }) // ties: the id decides
		if n%3 == 0 {
			rec = f.archiveEnv(rec.ID, at(100))
		} else {
			live = append(live, rec)
		}
		all = append(all, rec)
	}
	f.addEnv(50, func(r *control.EnvironmentRecord) { r.Workspace = "w2" })
	mark := func(r control.EnvironmentRecord) control.Mark {
		return control.Mark{CreatedAt: r.CreatedAt, ID: r.ID}
	}
	for _, limit := range []int{1, 4, 23, 100} {
		for _, archived := range []bool{true, false} {
			want := live
			if archived {
				want = all
			}
			fetch := func(p control.Page) ([]control.EnvironmentRecord, bool, error) {
				return f.ListEnvironments(f.ctx, "w1", archived, p)
			}
			f.same(pages(f, limit, true, mark, fetch), want)
			newest := slices.Clone(want)
			slices.Reverse(newest)
			f.same(pages(f, limit, false, mark, fetch), newest)
		}
	}
	// A page is found by value: rows before it may come and go.
	rows, _, err := f.ListEnvironments(f.ctx, "w1", true, control.Page{Limit: 5})
	f.ok(err)
	f.ok(f.DeleteEnvironment(f.ctx, "w1", rows[4].ID))
	f.addEnv(200)
	m := mark(rows[4])
	next, _, err := f.ListEnvironments(f.ctx, "w1", true, control.Page{Limit: 2, After: &m})
	f.ok(err)
	f.same(next, []control.EnvironmentRecord{all[17], all[16]})
}
