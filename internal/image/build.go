package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"
)

// BuilderConfig configures NewBuilder.
type BuilderConfig struct {
	// LayersDir holds the layer store. Required.
	LayersDir string
	// OpenBox opens a builder sandbox. Required.
	OpenBox OpenBox
	// MaxParallel bounds the installs that are in their first Turn at the same
	// time; a workspace in which none runs starts one all the same. Zero means
	// half the processors, at least 1.
	MaxParallel int
	// Turn is how long an install keeps others waiting. Zero means 15 seconds.
	Turn time.Duration
	// ManagerTimeout bounds one manager's install with all its attempts. Zero
	// means 10 minutes.
	ManagerTimeout time.Duration
	// NamingTime bounds the search for the package that failed, where the tool
	// does not tell. Zero means 10 seconds.
	NamingTime time.Duration
	// MaxAge is how old a layer with unpinned entries may be to be shared by a
	// new request. Zero means 7 days.
	MaxAge time.Duration
	// Backoff holds the pauses before the attempts after the first, when a
	// registry did not answer; each is varied by a quarter. Nil means 1, 4, 15 s.
	Backoff []time.Duration
	// Reserve is how many bytes stay free on the file system of LayersDir: a
	// layer that would take them is not made. Zero means a twentieth of the file
	// system, at most 1 GiB.
	Reserve int64
	// Downloads keeps what managers download, for later installs. Nil keeps nothing.
	Downloads *Downloads
	// Logger gets causes that callers do not see. Nil discards.
	Logger *slog.Logger
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Builder turns package lists into layers. For one key there is one build at a
// time; everyone who wants it follows it and gets its outcome. Failures are not
// cached. Methods may be called at the same time.
type Builder struct {
	cfg   BuilderConfig
	store *Store
	queue *queue
	life  context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu       sync.Mutex
	jobs     map[string]*job          // key → the build that runs or waits for a slot
	failed   map[string]*failedBefore // key → its last failure, while nothing succeeded since
	listings map[string][]installed   // parent key and manager → what the manager lists there
	closed   bool
}

// failedBefore spaces automatic attempts.
type failedBefore struct {
	failure *Failure
	until   time.Time
	pause   time.Duration
}

// NewBuilder opens the layer store, removes what a crash left in it, and
// returns a builder.
func NewBuilder(cfg BuilderConfig) (*Builder, error) {
	if cfg.LayersDir == "" || cfg.OpenBox == nil {
		return nil, errors.New("image: a builder needs LayersDir and OpenBox")
	}
	if cfg.MaxParallel <= 0 {
		cfg.MaxParallel = max(1, runtime.NumCPU()/2)
	}
	if cfg.Turn <= 0 {
		cfg.Turn = 15 * time.Second
	}
	if cfg.ManagerTimeout <= 0 {
		cfg.ManagerTimeout = 10 * time.Minute
	}
	if cfg.NamingTime <= 0 {
		cfg.NamingTime = 10 * time.Second
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = 7 * 24 * time.Hour
	}
	if cfg.Backoff == nil {
		cfg.Backoff = []time.Duration{time.Second, 4 * time.Second, 15 * time.Second}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	store, err := OpenStore(cfg.LayersDir)
	if err != nil {
		return nil, err
	}
	store.reserve = cfg.Reserve
	b := &Builder{cfg: cfg, store: store, queue: newQueue(cfg.MaxParallel, cfg.Turn),
		jobs: map[string]*job{}, failed: map[string]*failedBefore{}, listings: map[string][]installed{}}
	b.life, b.stop = context.WithCancel(context.Background())
	return b, nil
}

// Store returns the layer store that the builder fills.
func (b *Builder) Store() *Store { return b.store }

// Layer returns a complete layer; ErrNoLayer if there is none.
func (b *Builder) Layer(key string) (*Layer, error) { return b.store.Layer(key) }

// LayerDirs returns the directories of layers, to mount above the base.
func (b *Builder) LayerDirs(keys []string) ([]string, error) { return b.store.LayerDirs(keys) }

// Hold returns the directories of layers, to mount above the base, and keeps the
// layers from clean-up until release is called, which is never nil. The error is
// ErrNoLayer, wrapped, if one is not there; nothing is held then.
func (b *Builder) Hold(keys []string) (dirs []string, release func(), err error) {
	return b.store.hold(keys)
}

// Paused returns the failure that an automatic request would get without an
// attempt, and when that ends; nil if it would be tried, or needs no install.
func (b *Builder) Paused(req Request) (*Failure, time.Time) {
	steps := plan(req.Base, req.Packages, req.Generation, func(s Step) int64 { return b.epoch(s, req.Fresh) })
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range steps {
		if _, err := b.store.Layer(s.Key); err == nil {
			continue
		}
		if f := b.failed[s.Key]; f != nil && b.jobs[s.Key] == nil && b.cfg.Now().Before(f.until) {
			return f.failure, f.until
		}
		break
	}
	return nil, time.Time{}
}

// Now tells the builder's time.
func (b *Builder) Now() time.Time { return b.cfg.Now() }

// Close cancels all builds and waits until their boxes are gone.
func (b *Builder) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.stop()
	b.wg.Wait()
}

// Prune removes layers that nobody refers to; see Store.Prune. What running
// builds stand on is kept.
func (b *Builder) Prune(ctx context.Context, inUse func() (map[string]bool, error), quota int64) (Pruned, error) {
	return b.store.Prune(ctx, inUse, quota)
}

// Request asks for the layers of an environment.
type Request struct {
	// Base is what the layers stand on. Required.
	Base *Base
	// Packages are the lists, as an environment has them; empty lists make no layer.
	Packages Packages
	// Owner is for whom the build is made; builds of other owners do not wait
	// for it longer than a turn.
	Owner Owner
	// Generation is part of the keys of all layers: a request never gets one
	// that was made for another generation. 0 is that of all layers of versions
	// which had none.
	Generation int64
	// Fresh builds every layer again, under a new epoch, although layers that
	// would do are there.
	Fresh bool
	// Automatic marks a request that no person made: for a while after a
	// failure it gets that failure again, at once.
	Automatic bool
	// Watch, if set, is called one at a time with each change of state and each
	// line of the log. It must not block for long.
	Watch func(Event)
}

// Event is one thing that happened in a run: a change of status or a line.
type Event struct {
	// Status is the new state; nil for a line of the log.
	Status *Status
	// Line is a line of the log; nil for a change of state.
	Line *Line
}

// Result is a finished build: its layers, lowest first.
type Result struct {
	// Layers are in build order, the lowest first; empty when no list asked for one.
	Layers []Layer
	// Release lets clean-up have the layers again; until it is called they are
	// kept. Call it when what refers to them is on record. Never nil.
	Release func()
}

// Keys returns the keys of the layers, lowest first.
func (r *Result) Keys() []string {
	keys := make([]string, len(r.Layers))
	for i := range r.Layers {
		keys[i] = r.Layers[i].Key
	}
	return keys
}

// Build makes the layers of a request, or finds them. The error is a *Failure,
// a *SpecError, or ctx's; when ctx ends, only the waiting does. Use Start for
// more than the outcome.
func (b *Builder) Build(ctx context.Context, req Request) (*Result, error) {
	r, err := b.Start(req)
	if err != nil {
		return nil, err
	}
	return r.Wait(ctx)
}

// Start begins a build and returns its handle at once. The error is a
// *SpecError for lists that would not be accepted.
func (b *Builder) Start(req Request) (*Run, error) {
	if err := CheckPackages(req.Packages); err != nil {
		return nil, err
	}
	r := newRun(b, req)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("image: the builder is closed")
	}
	b.wg.Go(func() {
		defer r.cancel()
		r.build()
	})
	return r, nil
}

// epoch chooses the epoch of a family: the newest layer that is there, unless
// it is too old for a list that means "latest", or a fresh one is wanted.
func (b *Builder) epoch(s Step, fresh bool) int64 {
	newest := b.store.newest(s.Family)
	switch {
	case newest == nil:
		return 0
	case fresh, !s.Pinned && b.cfg.Now().Sub(newest.CreatedAt) > b.cfg.MaxAge:
		return newest.Epoch + 1
	}
	return newest.Epoch
}

// errStopping says that the build of the key was cancelled and has not stopped
// yet: wait for it and ask again.
var errStopping = errors.New("the build is stopping")

// attach returns the build of a step, and starts it if none runs. A hit has no
// job: the layer is returned and pinned.
func (b *Builder) attach(r *Run, s Step, below []*Layer) (*Layer, *job, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if j := b.jobs[s.Key]; j != nil {
		if j.ctx.Err() != nil {
			return nil, j, errStopping
		}
		j.interest++
		b.queue.join(j.place, r.req.Owner)
		return nil, j, nil
	}
	if b.store.pin(s.Key) {
		l, err := b.store.Layer(s.Key)
		if err != nil {
			b.store.unpin(s.Key)
			return nil, nil, err
		}
		return l, nil, nil
	}
	if f := b.failed[s.Key]; f != nil && r.req.Automatic && b.cfg.Now().Before(f.until) {
		return nil, nil, f.failure
	}
	if b.closed {
		return nil, nil, errors.New("image: the builder is closed")
	}
	j := newJob(b, r.req.Base, s, below)
	j.place.owners = []Owner{r.req.Owner}
	b.jobs[s.Key] = j
	b.wg.Go(j.run)
	return nil, j, nil
}

// detach takes back one interest; a build that nobody wants is cancelled. It
// reports whether the build had its layer before: then the caller has a pin.
func (b *Builder) detach(j *job) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if j.settled {
		return j.failure == nil
	}
	if j.interest--; j.interest <= 0 {
		j.cancel()
	}
	return false
}

// settle records the outcome of a job and makes room for the next of its key.
func (b *Builder) settle(j *job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.jobs[j.step.Key] == j {
		delete(b.jobs, j.step.Key)
	}
	if j.failure == nil {
		delete(b.failed, j.step.Key)
		// Every waiter has the layer pinned before clean-up can see it unused.
		for range j.interest {
			b.store.pin(j.step.Key)
		}
	} else if j.failure.Kind != KindCancelled {
		pause := 10 * time.Second
		if old := b.failed[j.step.Key]; old != nil {
			pause = min(2*old.pause, 10*time.Minute)
		}
		now := b.cfg.Now()
		maps.DeleteFunc(b.failed, func(_ string, f *failedBefore) bool { return now.Sub(f.until) > time.Hour })
		b.failed[j.step.Key] = &failedBefore{j.failure, now.Add(pause), pause}
	}
	j.settled = true
	close(j.done)
}

func (b *Builder) knownListing(s Step, base *Base) []installed {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.listings[hashFields(base.Digest, s.Parent, s.Manager)]
}

func (b *Builder) rememberListing(s Step, base *Base, list []installed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.listings) > 64 {
		clear(b.listings)
	}
	b.listings[hashFields(base.Digest, s.Parent, s.Manager)] = list
}

// boxLayers are the directories that a step's box is mounted over, lowest first.
func boxLayers(base *Base, below []*Layer) []string {
	dirs := []string{base.Dir}
	for _, l := range below {
		dirs = append(dirs, l.Dir)
	}
	return dirs
}

// missingTool tells before anything runs that a manager is not in the template
// and that no apt package could bring it. A template whose managers were never
// asked for is asked in the box.
func missingTool(base *Base, p Packages) *Failure {
	if len(base.Managers) == 0 {
		return nil
	}
	apt := false
	for _, s := range unplaced(base, p) {
		if base.Managers[s.Manager] == "" && (s.Manager == "apt" || !apt) {
			f := &Failure{Manager: s.Manager, Kind: KindToolchainMissing, Index: -1, ExitCode: -1, Tail: []string{}}
			f.Message = fmt.Sprintf("%s: %s", s.Manager, missing(s.Manager).phrase)
			return f
		}
		apt = apt || s.Manager == "apt"
	}
	return nil
}

func topFirst(dirs []string) []string {
	out := slices.Clone(dirs)
	slices.Reverse(out)
	return out
}
