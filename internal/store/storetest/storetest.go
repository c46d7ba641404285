// Package storetest is what every implementation of [control.Store] must do,
// as tests.
package storetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/atoll-run/atoll/internal/control"
)

// epoch is when the suite's first record was created.
var epoch = time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.UTC)

// Run runs the suite. open gives an empty store that is closed with the test.
func Run(t *testing.T, open func(t *testing.T) control.Store) {
	for _, part := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"environments", environments},
		{"environment names", environmentNames},
		{"environment deletion", environmentDeletion},
		{"environment pages", environmentPages},
		{"agents", agents},
		{"agent lists", agentLists},
		{"sessions", sessions},
		{"session lists", sessionLists},
		{"live sessions", liveSessions},
		{"events", events},
		{"refused changes of a log", refusedChanges},
		{"event pages", eventPages},
		{"active sessions", activeSessions},
		{"event race", eventRace},
		{"workspaces and keys", keys},
		{"archived workspaces", archivedWorkspaces},
		{"builds", builds},
		{"refused writes", refusedWrites},
		{"name race", nameRace},
		{"lost updates", lostUpdates},
		{"contexts", contexts},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			f := &fixture{t: t, Store: open(t), ctx: t.Context()}
			for _, id := range []string{"w1", "w2"} {
				f.ok(f.CreateWorkspace(f.ctx, control.Workspace{ID: id, Name: "name of " + id, CreatedAt: epoch}))
			}
			part.test(t, f)
		})
	}
}

// fixture is a store with the workspaces w1 and w2 and a few shorthands.
type fixture struct {
	control.Store
	t   *testing.T
	ctx context.Context
}

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) fails(err, want error) {
	f.t.Helper()
	if !errors.Is(err, want) {
		f.t.Fatalf("error = %v, want %v", err, want)
	}
}

func (f *fixture) same(got, want any) {
	f.t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		f.t.Fatalf("(-want +got)\n%s", diff)
	}
}

// at is second n after the epoch.
func at(n int) time.Time { return epoch.Add(time.Duration(n) * time.Second) }

func env(n int) control.EnvironmentRecord {
	return control.EnvironmentRecord{
		ID: fmt.Sprintf("env_%05d", n), Workspace: "w1", Name: fmt.Sprintf("name %d", n),
		Document: []byte(fmt.Sprintf(`{"n":%d,"s":"ü\u0000"}`, n)), CreatedAt: at(n), UpdatedAt: at(n),
	}
}

func (f *fixture) addEnv(n int, edit ...func(*control.EnvironmentRecord)) control.EnvironmentRecord {
	f.t.Helper()
	rec := env(n)
	for _, e := range edit {
		e(&rec)
	}
	f.ok(f.CreateEnvironment(f.ctx, rec))
	return rec
}

func (f *fixture) addSession(n int, environment string, edit ...func(*control.SessionRecord)) control.SessionRecord {
	f.t.Helper()
	rec := control.SessionRecord{
		ID: fmt.Sprintf("sesn_%05d", n), Workspace: "w1", Environment: environment, Agent: "agent_1", AgentVersion: 1,
		Status: "idle", Document: []byte(`{}`), CreatedAt: at(n), UpdatedAt: at(n),
	}
	for _, e := range edit {
		e(&rec)
	}
	f.ok(f.CreateSession(f.ctx, rec))
	return rec
}

func (f *fixture) archiveEnv(id string, when time.Time) control.EnvironmentRecord {
	f.t.Helper()
	rec, err := f.UpdateEnvironment(f.ctx, "w1", id, func(r *control.EnvironmentRecord) (bool, error) {
		r.ArchivedAt, r.UpdatedAt = when, when
		return true, nil
	})
	f.ok(err)
	return rec
}

func refusedWrites(t *testing.T, f *fixture) {
	bad := env(1)
	bad.Document = []byte("{")
	if err := f.CreateEnvironment(f.ctx, bad); err == nil {
		t.Error("a document that is no JSON was stored")
	}
	bad = env(1)
	bad.Workspace = "nowhere"
	f.fails(f.CreateEnvironment(f.ctx, bad), control.ErrNoRecord)
	f.addEnv(1)
	if err := f.CreateSession(f.ctx, control.SessionRecord{
		ID: "s", Workspace: "w1", Environment: "env_00001", Status: "asleep", Document: []byte(`{}`),
	}); err == nil {
		t.Error("an unknown status was stored")
	}
	_, err := f.Session(f.ctx, "w1", "s")
	f.fails(err, control.ErrNoRecord)
}

// each collects what a walk visits.
func each[T any](f *fixture, walk func(context.Context, func(T) error) error) []T {
	f.t.Helper()
	var all []T
	f.ok(walk(f.ctx, func(v T) error { all = append(all, v); return nil }))
	return all
}

// pages walks a whole list and then all the way back, checking on the way that
// both directions agree and that every page but the last is full.
func pages[T any](f *fixture, limit int, ascending bool, mark func(T) control.Mark, fetch func(control.Page) ([]T, bool, error)) []T {
	f.t.Helper()
	var all []T
	page := control.Page{Limit: limit, Ascending: ascending}
	for more := true; more; {
		var rows []T
		var err error
		rows, more, err = fetch(page)
		f.ok(err)
		if more && len(rows) != limit {
			f.t.Fatalf("%d rows of %d and more to come", len(rows), limit)
		}
		all = append(all, rows...)
		if len(rows) > 0 {
			last := mark(rows[len(rows)-1])
			page.After = &last
		}
	}
	if len(all) == 0 {
		return all
	}
	last := mark(all[len(all)-1])
	var back []T
	for page, more := (control.Page{Limit: limit, Ascending: ascending, Before: &last}), true; more; {
		var rows []T
		var err error
		rows, more, err = fetch(page)
		f.ok(err)
		back = append(slices.Clone(rows), back...)
		if len(rows) > 0 {
			first := mark(rows[0])
			page.Before = &first
		}
	}
	f.same(back, all[:len(all)-1])
	for _, page := range []control.Page{
		{Limit: limit, Ascending: ascending, Before: &last, Inclusive: true},
		{Limit: limit, Ascending: ascending, After: &last, Inclusive: true},
	} {
		rows, _, err := fetch(page)
		f.ok(err)
		if len(rows) == 0 || mark(rows[len(rows)-1]) != last || page.After != nil && len(rows) != 1 {
			f.t.Errorf("with its own row the page %+v has %d rows", page, len(rows))
		}
	}
	return all
}

func anyway(control.SessionRecord) error { return nil }

func hash(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }
