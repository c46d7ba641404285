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
	// Store remembers what builds came to.
	Store BuildStore
	// Templates make the bases.
	Templates Templates
	// Builder makes the layers.
	Builder *image.Builder
	// Logger is told of builds and failures; nil discards.
	Logger *slog.Logger
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
	runs   map[runKey]*buildRun   // the newest of each wish, until it is on record; under mu
	news   chan struct{}          // closed and replaced when a run begins, under mu
	counts map[string]int         // outcome → builds since the start, under mu
	bases  map[string]*image.Base // digest → a base seen before, under mu
	epochs map[string]int64       // workspace → epoch of its layers, as far as it was read, under mu
}

// Root is the root filesystem of an environment's sandboxes.
type Root struct {
	// Base is the template version at the bottom.
	Base *image.Base
	Dirs []string // lowest first: the base, then the package layers
	keys []string // of the layers
}

// wish is what an environment asks a build for.
type wish struct {
	Template string
	Packages image.Packages
	// Epoch is that of the workspace's layers; 0 leaves the hash as it was
	// before there were epochs.
	Epoch int64 `json:",omitempty"`
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
		ctx: ctx, cancel: cancel, runs: map[runKey]*buildRun{}, news: make(chan struct{}),
		counts: map[string]int{api.BuildReady: 0, api.BuildFailed: 0}, bases: map[string]*image.Base{}, epochs: map[string]int64{}}
}

// Shutdown ends the running builds and waits for them; they begin again at the
// next start.
func (b *Builds) Shutdown(ctx context.Context) error {
	b.cancel()
	return wait(ctx, &b.work)
}

// wishOf is what a cloud config asks for in a workspace.
func (b *Builds) wishOf(ctx context.Context, workspace string, c *api.CloudConfig) (wish, error) {
	epoch, err := b.epoch(ctx, workspace)
	if err != nil {
		return wish{}, err
	}
	w := wish{Template: c.BaseTemplate, Packages: imagePackages(c.Packages), Epoch: epoch}
	w.Packages.AptRecommends = c.AptRecommends && len(w.Packages.Apt) > 0
	if w.Template == "" {
		w.Template = b.templates.Default()
	}
	return w, nil
}

// epoch is that of a workspace's layers.
func (b *Builds) epoch(ctx context.Context, workspace string) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if epoch, ok := b.epochs[workspace]; ok {
		return epoch, nil
	}
	epoch, err := b.store.LayerEpoch(ctx, workspace)
	if err != nil {
		return 0, fmt.Errorf("reading the epoch of a workspace: %w", err)
	}
	b.epochs[workspace] = epoch
	return epoch, nil
}

// raised takes up that a workspace's epoch was raised. Builds under way go on,
// and nobody new waits for them.
func (b *Builds) raised(workspace string, epoch int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.epochs[workspace] = max(b.epochs[workspace], epoch)
}

// Changed starts the build that a created or updated environment asks for, so
// that its first session finds it done, and ends what it asked for before unless
// a session waits for that. It does not wait.
func (b *Builds) Changed(rec EnvironmentRecord) {
	config, err := EnvironmentConfig(rec)
	if err != nil {
		b.log.Error("environment cannot be read", "environment_id", rec.ID, "error", err)
		return
	}
	if config.Cloud == nil || !rec.ArchivedAt.IsZero() {
		b.abandon(rec.ID, "")
		return
	}
	w, err := b.wishOf(b.ctx, rec.Workspace, config.Cloud)
	if err != nil {
		b.log.Error("environment cannot be built", "environment_id", rec.ID, "error", err)
		return
	}
	b.abandon(rec.ID, w.hash())
	workspace := rec.Workspace
	b.work.Go(func() {
		rec, err := b.recordOf(b.ctx, rec.ID)
		if err == nil {
			_, release, err := b.built(rec, w)
			release()
			if err == nil {
				return // built before, and nothing changed that a build depends on
			}
		}
		b.start(workspace, rec.Environment, w, startOptions{})
	})
}

// Deleted ends the builds of an environment that is gone.
func (b *Builds) Deleted(environment string) { b.abandon(environment, "") }

// Root answers the root filesystem for what a session's snapshot of its
// environment asks for, building it or waiting for the build under way. Its
// layers are kept until release is called, which is never nil. The error of a
// failed install is an *image.Failure. For a while after a failure it is
// answered again, as a *pausedError, without another attempt.
func (b *Builds) Root(ctx context.Context, environment string, config *api.CloudConfig) (root Root, release func(), err error) {
	workspace, err := b.store.EnvironmentWorkspace(ctx, environment)
	if err != nil {
		return Root{}, func() {}, fmt.Errorf("reading whose environment %s is: %w", environment, err)
	}
	for {
		w, err := b.wishOf(ctx, workspace, config)
		if err != nil {
			return Root{}, func() {}, err
		}
		rec, err := b.recordOf(ctx, environment)
		if err != nil {
			return Root{}, func() {}, err
		}
		if root, release, err := b.built(rec, w); err == nil {
			return root, release, nil
		}
		if err := b.paused(rec, w); err != nil {
			return Root{}, func() {}, err
		}
		run := b.start(workspace, environment, w, startOptions{automatic: true, waits: true})
		root, err := run.wait(ctx)
		b.leave(run)
		if err != nil {
			return Root{}, func() {}, err
		}
		root, release, err := b.hold(root.Base, root.keys)
		if !errors.Is(err, image.ErrNoLayer) { // else clean-up was quicker
			return root, release, err
		}
	}
}

// recordOf reads what is recorded of an environment's build; where there is
// nothing the record says only whose it is.
func (b *Builds) recordOf(ctx context.Context, environment string) (BuildRecord, error) {
	rec, err := b.store.Build(ctx, environment)
	if errors.Is(err, ErrNoRecord) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("reading the build of %s: %w", environment, err)
	}
	rec.Environment = environment
	return rec, err
}

// errNotBuilt: the store has no usable build of the wish.
var errNotBuilt = errors.New("not built")

// built answers a wish from the environment's recorded build; errNotBuilt also
// if its files are gone because the cache was cleared.
func (b *Builds) built(rec BuildRecord, w wish) (Root, func(), error) {
	if rec.Status != api.BuildReady || rec.Wanted != w.hash() {
		return Root{}, func() {}, errNotBuilt
	}
	base := b.base(rec.BaseDigest)
	if base == nil {
		return Root{}, func() {}, errNotBuilt
	}
	root, release, err := b.hold(base, rec.Layers)
	if err != nil {
		return Root{}, release, errNotBuilt
	}
	return root, release, nil
}

// hold keeps layers from clean-up and makes a root of them.
func (b *Builds) hold(base *image.Base, keys []string) (Root, func(), error) {
	dirs, release, err := b.builder.Hold(keys)
	if err != nil {
		return Root{}, release, err
	}
	return Root{Base: base, Dirs: append([]string{base.Dir}, dirs...), keys: keys}, release, nil
}

// pausedError is a failure that is answered again without another attempt.
type pausedError struct {
	failure *image.Failure
	until   time.Time // when the next automatic attempt may be made
}

func (e *pausedError) Error() string { return e.failure.Error() }
func (e *pausedError) Unwrap() error { return e.failure }

// paused tells whether the recorded build of the wish failed a moment ago. The
// record then stays as it is, with the log of the attempt.
func (b *Builds) paused(rec BuildRecord, w wish) error {
	if rec.Status != api.BuildFailed || rec.Wanted != w.hash() {
		return nil
	}
	base := b.base(rec.BaseDigest)
	if base == nil {
		return nil
	}
	if f, until := b.builder.Paused(image.Request{Base: base, Packages: w.Packages, Generation: w.Epoch}); f != nil {
		return &pausedError{f, until}
	}
	return nil
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

// addBases adds the template versions that builds under way stand on.
func (b *Builds) addBases(used map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, run := range b.runs {
		if digest := run.status().BaseDigest; digest != "" {
			used[digest] = true
		}
	}
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
