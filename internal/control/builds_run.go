package control

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/atoll-run/atoll/internal/image"
)

// runKey is what there is one run of at a time.
type runKey struct{ environment, wanted string }

// startOptions say why a run is wanted.
type startOptions struct {
	fresh     bool // take new versions of what is not pinned
	automatic bool // no person asked: attempts after a failure are spaced
	waits     bool // the caller waits for it, and calls leave
}

// start joins the environment's run for this wish or begins one. A fresh run
// takes the place of one that is under way.
func (b *Builds) start(workspace, environment string, w wish, o startOptions) *buildRun {
	b.mu.Lock()
	defer b.mu.Unlock()
	run := newBuildRun(b.ctx, workspace, environment, w)
	if under := b.runs[run.key]; under != nil && !under.ended() && under.ctx.Err() == nil {
		if o.fresh {
			b.orphan(under)
		} else {
			run.cancel()
			run = under
		}
	}
	if o.waits {
		run.waiters++
	}
	if b.runs[run.key] != run {
		b.runs[run.key] = run
		b.work.Go(func() { b.build(run, o) })
		close(b.news)
		b.news = make(chan struct{})
	}
	return run
}

// leave takes a waiter back.
func (b *Builds) leave(run *buildRun) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if run.waiters--; run.orphaned {
		b.orphan(run)
	}
}

// abandon says that an environment wants none of its runs any more, but that of
// the wish with the hash.
func (b *Builds) abandon(environment, wanted string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, run := range b.runs {
		if key.environment == environment && key.wanted != wanted {
			b.orphan(run)
		}
	}
}

// orphan marks a run that goes on for those who wait for it only, and cancels it
// when nobody does. The caller holds mu.
func (b *Builds) orphan(run *buildRun) {
	run.orphaned = true
	if run.waiters == 0 {
		run.cancel()
	}
}

// newest tells whether no other run has taken the run's place.
func (b *Builds) newest(run *buildRun) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[run.key] == run
}

// current is the run of an environment's wish that is not on record yet, or nil;
// and a channel that is closed when another run begins.
func (b *Builds) current(environment string, w wish) (*buildRun, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[runKey{environment, w.hash()}], b.news
}

// build does a run's work and records how it ended.
func (b *Builds) build(run *buildRun, o startOptions) {
	defer run.cancel()
	err := b.record(run)
	if errors.Is(err, ErrStale) || errors.Is(err, ErrNoRecord) {
		// A session from before an update asks for it, or the environment has
		// changed or gone since.
		b.mu.Lock()
		b.orphan(run)
		b.mu.Unlock()
	}
	root, release, err := b.make(run, o)
	defer release() // the layers are kept until the record names them
	run.finish(root, err)
	if b.ctx.Err() != nil && err != nil {
		return // the server ends: the record keeps saying "building" and the next server goes on
	}
	if err != nil {
		b.log.Warn("environment build failed", "environment_id", run.environment, "error", err)
	}
	b.count(run.status().Status)
	if err := b.record(run); err != nil && !errors.Is(err, ErrStale) && !errors.Is(err, ErrNoRecord) {
		return // what is known of it is here only
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.runs[run.key] == run {
		delete(b.runs, run.key)
	}
}

// make builds the base and the layers of a run. release lets clean-up have the
// layers again and is never nil.
func (b *Builds) make(run *buildRun, o startOptions) (Root, func(), error) {
	// A template is of use to others too: it is made even if the run is cancelled.
	base, err := b.templates.Ensure(b.ctx, run.wish.Template, run)
	if err != nil {
		return Root{}, func() {}, fmt.Errorf("building template %s: %w", run.wish.Template, err)
	}
	run.based(base)
	root := Root{Base: base, Dirs: []string{base.Dir}, keys: []string{}}
	if run.wish.Packages.Empty() && base.Packages.Empty() {
		return root, func() {}, nil
	}
	layers, err := b.builder.Start(image.Request{Base: base, Packages: run.wish.Packages,
		Owner: image.Owner{Workspace: run.workspace, Environment: run.environment}, Generation: run.wish.Epoch, Fresh: o.fresh, Automatic: o.automatic})
	if err != nil {
		return Root{}, func() {}, fmt.Errorf("starting the build: %w", err)
	}
	run.layering(layers)
	defer context.AfterFunc(run.ctx, layers.Cancel)()
	result, err := layers.Wait(b.ctx)
	if err != nil {
		return Root{}, func() {}, err
	}
	for _, l := range result.Layers {
		root.Dirs, root.keys = append(root.Dirs, l.Dir), append(root.keys, l.Key)
	}
	return root, result.Release, nil
}

// record writes the run's present state to the store. It is ErrStale if the
// environment asks for something else or another run has taken this one's
// place, ErrNoRecord if the environment is gone.
func (b *Builds) record(run *buildRun) error {
	status := run.status()
	doc, err := json.Marshal(status)
	if err != nil {
		b.log.Error("build status cannot be encoded", "environment_id", run.environment, "error", err)
		return err
	}
	rec := BuildRecord{Environment: run.environment, Wanted: run.wanted, Status: status.Status,
		BaseDigest: status.BaseDigest, Layers: []string{}, Document: doc, UpdatedAt: time.Now().UTC()}
	if root, ok := run.made(); ok {
		rec.Layers = root.keys
	} else if former, err := b.store.Build(b.ctx, run.environment); err == nil && former.Wanted == run.wanted &&
		(rec.BaseDigest == "" || rec.BaseDigest == former.BaseDigest) {
		// If a rebuild fails, the environment goes back to what it had.
		rec.BaseDigest, rec.Layers = former.BaseDigest, former.Layers
	}
	if run.ended() {
		rec.Log = run.log()
	}
	err = b.store.PutBuild(context.WithoutCancel(b.ctx), rec, func(env EnvironmentRecord) bool {
		config, err := EnvironmentConfig(env)
		if err != nil || config.Cloud == nil {
			return false
		}
		w, err := b.wishOf(context.WithoutCancel(b.ctx), env.Workspace, config.Cloud)
		return err == nil && w.hash() == run.wanted && b.newest(run)
	})
	if err != nil && !errors.Is(err, ErrNoRecord) && !errors.Is(err, ErrStale) {
		b.log.Error("build cannot be recorded", "environment_id", run.environment, "error", err)
	}
	return err
}

// log is the whole log, compressed.
func (r *buildRun) log() []byte {
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	lines, _, _, _ := r.read(0)
	for _, l := range lines {
		_, _ = packed.Write([]byte(l + "\n")) // a buffer takes everything
	}
	_ = packed.Close()
	return out.Bytes()
}
