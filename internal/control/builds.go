package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/image"
)

// Templates builds and finds template bases; *image.Templates does.
type Templates interface {
	TemplateNames
	Default() string
	Ensure(ctx context.Context, name string, p image.Progress) (*image.Base, error)
	List() ([]image.Manifest, error)
	BaseDirs() []*image.Base
}

// BuildsConfig says what Builds works with. Nothing in it may be nil but Logger.
type BuildsConfig struct {
	Store     BuildStore
	Templates Templates
	Builder   *image.Builder
	Logger    *slog.Logger
}

// Builds turns what an environment declares into the read-only directories its
// sandboxes mount, and remembers what each environment's build came to. One
// build runs for one environment's wish at a time; equal layers are built once
// by the builder below, whoever asks. Its methods may be called at the same time.
type Builds struct {
	store     BuildStore
	templates Templates
	builder   *image.Builder
	log       *slog.Logger

	ctx    context.Context // the life of the server's builds
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	runs   map[string]*buildRun   // environment id → its newest run, under mu
	counts map[string]int         // outcome → builds since the start, under mu
	bases  map[string]*image.Base // digest → a base seen before, under mu
}

// Root is the root filesystem of an environment's sandboxes.
type Root struct {
	Base *image.Base
	Dirs []string // lowest first: the base, then the package layers
}

// wish is what an environment asks a build for.
type wish struct {
	Template string
	Packages image.Packages
}

// hash identifies a wish in the store.
func (w wish) hash() string {
	raw, err := json.Marshal(w)
	if err != nil {
		panic("control: a wish cannot be encoded: " + err.Error()) // strings only
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// NewBuilds makes a Builds.
func NewBuilds(cfg BuildsConfig) *Builds {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Builds{store: cfg.Store, templates: cfg.Templates, builder: cfg.Builder, log: cfg.Logger,
		ctx: ctx, cancel: cancel, runs: map[string]*buildRun{},
		counts: map[string]int{api.BuildReady: 0, api.BuildFailed: 0}, bases: map[string]*image.Base{}}
}

// Shutdown ends the running builds and waits for them; they begin again at the
// next start.
func (b *Builds) Shutdown(ctx context.Context) error {
	b.cancel()
	return wait(ctx, &b.work)
}

// wishOf is what a cloud config asks for.
func (b *Builds) wishOf(c *api.CloudConfig) wish {
	w := wish{Template: c.BaseTemplate, Packages: imagePackages(c.Packages)}
	if w.Template == "" {
		w.Template = b.templates.Default()
	}
	return w
}

// Changed starts the build that a created or updated environment asks for, so
// that its first session finds it done. It does not wait.
func (b *Builds) Changed(rec EnvironmentRecord) {
	config, err := EnvironmentConfig(rec)
	if err != nil {
		b.log.Error("environment cannot be read", "environment_id", rec.ID, "error", err)
		return
	}
	if config.Cloud == nil || !rec.ArchivedAt.IsZero() {
		return
	}
	w := b.wishOf(config.Cloud)
	b.work.Go(func() {
		if _, err := b.ready(b.ctx, rec.ID, w); err == nil {
			return // built before, and nothing changed that a build depends on
		}
		b.start(rec.ID, w, startOptions{record: true})
	})
}

// Root answers the root filesystem for what a session's snapshot of its
// environment asks for, building it or waiting for the build under way. The
// error of a failed install is an *image.Failure.
func (b *Builds) Root(ctx context.Context, environment string, config *api.CloudConfig) (Root, error) {
	w := b.wishOf(config)
	root, err := b.ready(ctx, environment, w)
	if err == nil {
		return root, nil
	}
	if !errors.Is(err, errNotBuilt) {
		return Root{}, err
	}
	return b.start(environment, w, startOptions{}).wait(ctx)
}

// errNotBuilt: the store has no usable build of the wish.
var errNotBuilt = errors.New("not built")

// ready answers a wish from the environment's recorded build.
func (b *Builds) ready(ctx context.Context, environment string, w wish) (Root, error) {
	rec, err := b.store.Build(ctx, environment)
	if errors.Is(err, ErrNoRecord) {
		return Root{}, errNotBuilt
	}
	if err != nil {
		return Root{}, fmt.Errorf("reading the build of %s: %w", environment, err)
	}
	if rec.Status != api.BuildReady || rec.Wanted != w.hash() {
		return Root{}, errNotBuilt
	}
	root, ok := b.recorded(rec)
	if !ok {
		return Root{}, errNotBuilt // its files are gone: the cache was cleared
	}
	return root, nil
}

// recorded finds the directories of a recorded build.
func (b *Builds) recorded(rec BuildRecord) (Root, bool) {
	base := b.base(rec.BaseDigest)
	if base == nil {
		return Root{}, false
	}
	dirs, err := b.builder.LayerDirs(rec.Layers)
	if err != nil {
		return Root{}, false
	}
	return Root{Base: base, Dirs: append([]string{base.Dir}, dirs...)}, true
}

// base finds a template version by its digest, or nil. Versions never change,
// so one that was found is not read again while its files are there.
func (b *Builds) base(digest string) *image.Base {
	b.mu.Lock()
	defer b.mu.Unlock()
	if base := b.bases[digest]; base != nil {
		if _, err := os.Stat(base.Dir); err == nil {
			return base
		}
		delete(b.bases, digest)
	}
	for _, base := range b.templates.BaseDirs() {
		if base.Digest == digest {
			b.bases[digest] = base
			return base
		}
	}
	return nil
}

// registries are those of a template version as the operator sets them now; not
// ok if the version is gone.
func (b *Builds) registries(digest string) ([]image.Registry, bool) {
	if base := b.base(digest); base != nil {
		return base.Registries, true
	}
	return nil, false
}

// registriesChanged drops what was remembered of template versions.
func (b *Builds) registriesChanged() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.bases)
}

// Succeeded tells whether the environment's newest build is ready.
func (b *Builds) Succeeded(environment string) bool {
	rec, err := b.store.Build(b.ctx, environment)
	return err == nil && rec.Status == api.BuildReady
}

// startOptions say how a run differs from a session's plain wish.
type startOptions struct {
	record bool // it is what the environment itself asks for now
	fresh  bool // take new versions of what is not pinned
}

// start joins the environment's run for this wish or begins one.
func (b *Builds) start(environment string, w wish, opts startOptions) *buildRun {
	b.mu.Lock()
	defer b.mu.Unlock()
	if run := b.runs[environment]; run != nil && run.wanted == w.hash() && !run.ended() && !opts.fresh {
		return run
	}
	run := newBuildRun(environment, w)
	b.runs[environment] = run
	b.work.Go(func() { b.build(run, opts) })
	return run
}

// build does a run's work and records how it ended.
func (b *Builds) build(run *buildRun, opts startOptions) {
	opts.record = opts.record || b.unrecorded(run)
	b.record(run, opts)
	root, release, err := b.make(run, opts)
	defer release() // the layers are kept until the record names them
	run.finish(root, err)
	if b.ctx.Err() != nil && err != nil {
		return // the server ends: the record keeps saying "building" and the next server goes on
	}
	if err != nil {
		b.log.Warn("environment build failed", "environment_id", run.environment, "error", err)
	}
	b.count(run.status().Status)
	b.record(run, opts)
}

func (b *Builds) count(outcome string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[outcome]++
}

// Counts reports how builds ended since the start, for metrics.
func (b *Builds) Counts() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts)
}

// unrecorded tells whether nothing else is recorded for the run's environment,
// so that a session's build is the environment's too.
func (b *Builds) unrecorded(run *buildRun) bool {
	rec, err := b.store.Build(b.ctx, run.environment)
	return errors.Is(err, ErrNoRecord) || err == nil && rec.Wanted == run.wanted
}

// make builds the base and the layers of a run. release lets clean-up have the
// layers again and is never nil.
func (b *Builds) make(run *buildRun, opts startOptions) (Root, func(), error) {
	base, err := b.templates.Ensure(b.ctx, run.wish.Template, run)
	if err != nil {
		return Root{}, func() {}, fmt.Errorf("building template %s: %w", run.wish.Template, err)
	}
	run.based(base)
	root := Root{Base: base, Dirs: []string{base.Dir}}
	if run.wish.Packages.Empty() {
		return root, func() {}, nil
	}
	layers, err := b.builder.Start(image.Request{Base: base, Packages: run.wish.Packages, Fresh: opts.fresh})
	if err != nil {
		return Root{}, func() {}, fmt.Errorf("starting the build: %w", err)
	}
	run.layering(layers)
	result, err := layers.Wait(b.ctx)
	if err != nil {
		return Root{}, func() {}, err
	}
	for _, l := range result.Layers {
		root.Dirs = append(root.Dirs, l.Dir)
	}
	return root, result.Release, nil
}

// record writes the run's present state to the store, unless the environment
// meanwhile asks for something else.
func (b *Builds) record(run *buildRun, opts startOptions) {
	if !opts.record || b.current(run.environment) != run {
		return
	}
	status := run.status()
	doc, err := json.Marshal(status)
	if err != nil {
		b.log.Error("build status cannot be encoded", "environment_id", run.environment, "error", err)
		return
	}
	rec := BuildRecord{Environment: run.environment, Wanted: run.wanted, Status: status.Status,
		BaseDigest: status.BaseDigest, Layers: []string{}, Document: doc, UpdatedAt: time.Now().UTC()}
	for _, l := range status.Layers {
		if l.Key != "" && status.Status == api.BuildReady {
			rec.Layers = append(rec.Layers, l.Key)
		}
	}
	err = b.store.PutBuild(context.WithoutCancel(b.ctx), rec)
	if err != nil && !errors.Is(err, ErrNoRecord) { // a deleted environment has no record
		b.log.Error("build cannot be recorded", "environment_id", run.environment, "error", err)
	}
}

// current is the environment's newest run of this server, or nil.
func (b *Builds) current(environment string) *buildRun {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs[environment]
}
