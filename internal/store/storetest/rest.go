package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
)

func keys(t *testing.T, f *fixture) {
	f.fails(f.CreateWorkspace(f.ctx, control.Workspace{ID: "w1", Name: "again", CreatedAt: epoch}), control.ErrDuplicate)
	all, err := f.ListWorkspaces(f.ctx)
	f.ok(err)
	f.same(all, []control.Workspace{
		{ID: "w1", Name: "name of w1", CreatedAt: epoch}, {ID: "w2", Name: "name of w2", CreatedAt: epoch},
	})

	key := control.Key{ID: "key_1", Workspace: "w1", Name: "k", Kind: control.KeyAPI, Hash: hash("one"), Hint: "…one"[3:], CreatedAt: at(1)}
	narrow := control.Key{ID: "key_2", Workspace: "w1", Kind: control.KeySession, Scope: "sesn_1", Hash: hash("two"), CreatedAt: at(2)}
	f.ok(f.CreateKey(f.ctx, key))
	f.ok(f.CreateKey(f.ctx, narrow))
	f.fails(f.CreateKey(f.ctx, control.Key{ID: "key_3", Workspace: "w2", Kind: control.KeyAPI, Hash: hash("one"), CreatedAt: at(3)}), control.ErrDuplicate)
	f.fails(f.CreateKey(f.ctx, control.Key{ID: "key_3", Workspace: "w9", Kind: control.KeyAPI, Hash: hash("three"), CreatedAt: at(3)}), control.ErrNoRecord)
	got, err := f.KeyByHash(f.ctx, hash("one"))
	f.ok(err)
	f.same(got, key)
	_, err = f.KeyByHash(f.ctx, hash("three"))
	f.fails(err, control.ErrNoRecord)

	f.fails(f.RevokeKey(f.ctx, "w2", key.ID, at(5)), control.ErrNoRecord)
	f.ok(f.RevokeKey(f.ctx, "w1", key.ID, at(5)))
	f.ok(f.RevokeKey(f.ctx, "w1", key.ID, at(6)))
	_, err = f.KeyByHash(f.ctx, hash("one"))
	f.fails(err, control.ErrNoRecord)
	key.RevokedAt = at(5)
	list, err := f.ListKeys(f.ctx, "w1")
	f.ok(err)
	f.same(list, []control.Key{key, narrow})
}

func builds(t *testing.T, f *fixture) {
	always := func(control.EnvironmentRecord) bool { return true }
	e := f.addEnv(1)
	_, err := f.Build(f.ctx, e.ID)
	f.fails(err, control.ErrNoRecord)
	f.fails(f.PutBuild(f.ctx, control.BuildRecord{Environment: "env_none", Status: "queued"}, always), control.ErrNoRecord)
	for n, status := range []string{"queued", "ready"} {
		want := control.BuildRecord{Environment: e.ID, Wanted: "w", Status: status, BaseDigest: "sha256:b",
			Layers: []string{"l1", "l2"}[:n*2], Document: []byte(`{"log":[]}`), UpdatedAt: at(n)}
		want.Log = []byte(status)
		f.ok(f.PutBuild(f.ctx, want, always))
		log, err := f.BuildLog(f.ctx, e.ID)
		f.ok(err)
		f.same(log, want.Log)
		want.Log = nil
		got, err := f.Build(f.ctx, e.ID)
		f.ok(err)
		f.same(got, want)
		var open []string
		f.ok(f.UnfinishedBuilds(f.ctx, func(rec control.EnvironmentRecord) error {
			open = append(open, rec.ID)
			return nil
		}))
		f.same(open, map[string][]string{"queued": {e.ID}}[status])
	}
	// Another wish than the environment's is not recorded.
	f.fails(f.PutBuild(f.ctx, control.BuildRecord{Environment: e.ID, Status: "failed"}, func(rec control.EnvironmentRecord) bool {
		f.same(rec, e)
		return false
	}), control.ErrStale)
	got, err := f.Build(f.ctx, e.ID)
	f.ok(err)
	f.same(got.Status, "ready")
	// A build that was never recorded, or before the environment changed, is
	// still to come.
	for _, n := range []int{5, 6} {
		rec := f.addEnv(n)
		if n == 6 {
			f.ok(f.PutBuild(f.ctx, control.BuildRecord{Environment: rec.ID, Status: "ready", UpdatedAt: rec.UpdatedAt.Add(-1e6)}, always))
		}
		open := []string{}
		f.ok(f.UnfinishedBuilds(f.ctx, func(rec control.EnvironmentRecord) error {
			open = append(open, rec.ID)
			return nil
		}))
		f.same(open, []string{rec.ID})
		f.ok(f.PutBuild(f.ctx, control.BuildRecord{Environment: rec.ID, Status: "failed", UpdatedAt: rec.UpdatedAt, BaseDigest: "sha256:b", Layers: []string{"l1", "l2"}}, always))
	}
	// Archived without a session, archived with an archived and with a live one.
	for n, live := range map[int]string{2: "none", 3: "archived", 4: "live"} {
		rec := f.addEnv(n)
		f.ok(f.PutBuild(f.ctx, control.BuildRecord{Environment: rec.ID, Status: "ready", BaseDigest: live}, always))
		if live != "none" {
			f.addSession(n, rec.ID, func(r *control.SessionRecord) {
				if live == "archived" {
					r.ArchivedAt = at(9)
				}
			})
		}
		f.archiveEnv(rec.ID, at(10))
	}
	layers := map[string][]string{}
	f.ok(f.ReferencedLayers(f.ctx, func(_, base string, keys []string) error {
		layers[base] = keys
		return nil
	}))
	f.same(layers, map[string][]string{"sha256:b": {"l1", "l2"}, "live": nil})
	// Epochs of layers only grow, each workspace's by itself.
	for _, step := range []struct {
		workspace     string
		atLeast, want int64
	}{{"w1", 0, 1}, {"w1", 100, 100}, {"w1", 50, 101}, {"w2", 7, 7}} {
		raised, err := f.RaiseLayerEpoch(f.ctx, step.workspace, step.atLeast)
		f.ok(err)
		f.same(raised, step.want)
		now, err := f.LayerEpoch(f.ctx, step.workspace)
		f.ok(err)
		f.same(now, step.want)
	}
	_, err = f.RaiseLayerEpoch(f.ctx, "w9", 1)
	f.fails(err, control.ErrNoRecord)
	_, err = f.LayerEpoch(f.ctx, "w9")
	f.fails(err, control.ErrNoRecord)
	owner, err := f.EnvironmentWorkspace(f.ctx, e.ID)
	f.ok(err)
	f.same(owner, e.Workspace)
	_, err = f.EnvironmentWorkspace(f.ctx, "env_gone")
	f.fails(err, control.ErrNoRecord)
	stop := errors.New("stop")
	f.fails(f.ReferencedLayers(f.ctx, func(string, string, []string) error { return stop }), stop)
}

// together runs n functions at the same time and collects their errors.
func together(n int, do func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = do(i)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

func nameRace(t *testing.T, f *fixture) {
	const racers = 32
	won := 0
	for _, err := range together(racers, func(i int) error {
		rec := env(i)
		rec.Name = "wanted"
		return f.CreateEnvironment(f.ctx, rec)
	}) {
		if err == nil {
			won++
		} else {
			f.fails(err, control.ErrDuplicate)
		}
	}
	all, _, err := f.ListEnvironments(f.ctx, "w1", true, control.Page{Limit: racers})
	f.ok(err)
	if won != 1 || len(all) != 1 {
		t.Errorf("%d creates succeeded, %d environments are there; want one of each", won, len(all))
	}
}

func lostUpdates(t *testing.T, f *fixture) {
	const writers, rounds = 16, 8
	e := f.addEnv(1)
	a := f.addAgent(1)
	for _, err := range together(writers, func(int) error {
		for range rounds {
			if _, err := f.UpdateEnvironment(f.ctx, "w1", e.ID, func(r *control.EnvironmentRecord) (bool, error) {
				r.UpdatedAt = r.UpdatedAt.Add(1000)
				return true, nil
			}); err != nil {
				return err
			}
			if _, err := f.UpdateAgent(f.ctx, "w1", a.ID, func(r *control.AgentRecord) (bool, error) {
				r.Document = fmt.Appendf(nil, `{"after":%d}`, r.Version)
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	}) {
		f.ok(err)
	}
	got, err := f.Environment(f.ctx, "w1", e.ID)
	f.ok(err)
	if n := got.UpdatedAt.Sub(e.UpdatedAt).Microseconds(); n != writers*rounds {
		t.Errorf("%d updates of the environment were kept of %d", n, writers*rounds)
	}
	newest, err := f.Agent(f.ctx, "w1", a.ID, 0)
	f.ok(err)
	f.same(newest.Version, 1+writers*rounds)
	f.same(string(newest.Document), fmt.Sprintf(`{"after":%d}`, writers*rounds))
}

func contexts(t *testing.T, f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	f.fails(f.CreateEnvironment(ctx, env(1)), context.Canceled)
	_, err := f.Environment(f.ctx, "w1", env(1).ID)
	f.fails(err, control.ErrNoRecord)

	// A write that waits behind another is given up, for good, with its context.
	ctx, cancel = context.WithCancel(f.ctx)
	e := f.addEnv(2)
	inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		_, err := f.UpdateEnvironment(f.ctx, "w1", e.ID, func(*control.EnvironmentRecord) (bool, error) {
			close(inside)
			<-leave
			return false, nil
		})
		done <- err
	}()
	<-inside
	waiter := make(chan error)
	go func() { waiter <- f.CreateEnvironment(ctx, env(3)) }()
	cancel()
	f.fails(<-waiter, context.Canceled)
	close(leave)
	f.ok(<-done)
	f.addEnv(4)
	_, err = f.Environment(f.ctx, "w1", env(3).ID)
	f.fails(err, control.ErrNoRecord)
}

// archivedWorkspaces archives a workspace: not while it has sessions,
// and from then on nothing opens it.
func archivedWorkspaces(_ *testing.T, f *fixture) {
	other := control.Key{ID: "key_other", Workspace: "w2", Kind: control.KeyAPI, Hash: hash("other"), CreatedAt: at(4)}
	f.ok(f.CreateKey(f.ctx, other))
	fresh := control.Key{ID: "key_fresh", Workspace: "w1", Kind: control.KeyAPI, Hash: hash("fresh"), CreatedAt: at(4)}
	f.ok(f.CreateKey(f.ctx, fresh))
	f.ok(f.CreateEnvironment(f.ctx, control.EnvironmentRecord{ID: "env_ws", Workspace: "w1", Name: "of the workspace", Document: []byte("{}"), CreatedAt: at(4), UpdatedAt: at(4)}))
	sess := control.SessionRecord{ID: "sesn_ws", Workspace: "w1", Environment: "env_ws", Agent: "agent_1", AgentVersion: 1, Status: "idle", Document: []byte("{}"), CreatedAt: at(4), UpdatedAt: at(4)}
	f.ok(f.LimitWorkspace(f.ctx, "w1", 1))
	f.fails(f.LimitWorkspace(f.ctx, "w9", 1), control.ErrNoRecord)
	f.ok(f.CreateSession(f.ctx, sess))
	second := sess
	second.ID = "sesn_second"
	f.fails(f.CreateSession(f.ctx, second), control.ErrLimit)
	f.ok(f.LimitWorkspace(f.ctx, "w1", 2))
	f.ok(f.CreateSession(f.ctx, second))
	f.ok(f.DeleteSession(f.ctx, "w1", second.ID, func(control.SessionRecord) error { return nil }))
	f.ok(f.LimitWorkspace(f.ctx, "w1", 1))
	f.fails(f.ArchiveWorkspace(f.ctx, "w1", at(5)), control.ErrInUse)
	f.fails(f.ArchiveWorkspace(f.ctx, "w9", at(5)), control.ErrNoRecord)
	_, err := f.KeyByHash(f.ctx, hash("fresh"))
	f.ok(err)
	_, err = f.UpdateSession(f.ctx, "w1", "sesn_ws", func(rec *control.SessionRecord) (bool, error) {
		rec.ArchivedAt = at(5)
		return true, nil
	})
	f.ok(err)
	f.ok(f.CreateSession(f.ctx, second)) // the archived one does not count
	f.ok(f.DeleteSession(f.ctx, "w1", second.ID, func(control.SessionRecord) error { return nil }))
	f.ok(f.ArchiveWorkspace(f.ctx, "w1", at(6)))
	f.ok(f.ArchiveWorkspace(f.ctx, "w1", at(7)))
	all, err := f.ListWorkspaces(f.ctx)
	f.ok(err)
	f.same(all, []control.Workspace{{ID: "w1", Name: "name of w1", CreatedAt: epoch, ArchivedAt: at(6), MaxSessions: 1}, {ID: "w2", Name: "name of w2", CreatedAt: epoch}})
	_, err = f.KeyByHash(f.ctx, hash("fresh"))
	f.fails(err, control.ErrNoRecord)
	_, err = f.KeyByHash(f.ctx, hash("other"))
	f.ok(err)
	fresh.ID, fresh.Hash = "key_late", hash("late")
	f.fails(f.CreateKey(f.ctx, fresh), control.ErrStale)
	sess.ID = "sesn_late"
	f.fails(f.CreateSession(f.ctx, sess), control.ErrNoRecord)
}
