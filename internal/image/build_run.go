package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// State of a build or of one of its layers.
type State string

// The states of a build, in order; a build ends ready or failed.
const (
	StateQueued   State = "queued"
	StateBuilding State = "building"
	StateReady    State = "ready"
	StateFailed   State = "failed"
)

// Status is a build at one moment, as the API shows it.
type Status struct {
	// Status is the state of the build as a whole.
	Status State `json:"status"`
	// Layers are in build order, one for each manager with entries.
	Layers []LayerStatus `json:"layers"`
	// Error is why the build failed; nil unless it did.
	Error *Failure `json:"error"`
	// StartedAt is when the build was asked for.
	StartedAt time.Time `json:"started_at"`
	// FinishedAt is nil until the build has ended.
	FinishedAt *time.Time `json:"finished_at"`
}

// LayerStatus is one layer of a build. Hit is true when it was there already,
// false when it was built, null while that is open.
type LayerStatus struct {
	// Manager is whose packages the layer holds.
	Manager string `json:"manager"`
	// State is the layer's own state.
	State State `json:"state"`
	// Hit tells whether the layer was there already; nil until that is known.
	Hit *bool `json:"hit"`
	// Key names the layer; empty until it is known.
	Key string `json:"key"`
	// Digest is that of Layer; empty until the layer is ready.
	Digest string `json:"digest"`
	// SizeBytes is that of Layer; 0 until the layer is ready.
	SizeBytes int64 `json:"size_bytes"`
	// DurationMS is how long this build waited for the layer, in milliseconds.
	DurationMS int64 `json:"duration_ms"`
	// Packages are what the manager lists above the layers below; empty until the layer is ready.
	Packages []PackageVersion `json:"packages"`
}

// Run is a build that somebody asked for: a chain of layers, each found or
// built. Methods may be called at the same time.
type Run struct {
	b      *Builder
	req    Request
	log    Log
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex // guards what follows
	status Status

	watching sync.Mutex // held while Watch is called

	release sync.Once
	pinned  []string
	result  *Result // set before done is closed
	err     error
}

func newRun(b *Builder, req Request) *Run {
	r := &Run{b: b, req: req, done: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(b.life)
	r.status = Status{Status: StateQueued, Layers: []LayerStatus{}, StartedAt: b.cfg.Now().UTC()}
	for _, s := range plan(req.Base, req.Packages, req.Generation, nil) {
		r.status.Layers = append(r.status.Layers, LayerStatus{Manager: s.Manager, State: StateQueued, Packages: []PackageVersion{}})
	}
	if req.Watch != nil {
		r.log.watch = func(l Line) { r.watch(Event{Line: &l}) }
	}
	return r
}

// Done is closed when the run has its outcome.
func (r *Run) Done() <-chan struct{} { return r.done }

// Log is the run's log: it grows until the run ends.
func (r *Run) Log() *Log { return &r.log }

// Status returns the run's status now.
func (r *Run) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copyStatus()
}

func (r *Run) copyStatus() Status {
	s := r.status
	s.Layers = append([]LayerStatus{}, s.Layers...)
	return s
}

// Wait waits for the outcome, or for ctx. The run goes on when ctx ends.
func (r *Run) Wait(ctx context.Context) (*Result, error) {
	select {
	case <-r.done:
		return r.result, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Cancel says that nobody wants this run any more. A layer that another run
// wants too is built on.
func (r *Run) Cancel() { r.cancel() }

// Release lets clean-up have the run's layers again. It may be called at any
// time and more than once.
func (r *Run) Release() {
	go func() {
		<-r.done
		r.letGo()
	}()
}

func (r *Run) letGo() {
	r.release.Do(func() {
		for _, key := range r.pinned {
			r.b.store.unpin(key)
		}
	})
}

func (r *Run) watch(e Event) {
	if r.req.Watch == nil {
		return
	}
	r.watching.Lock()
	defer r.watching.Unlock()
	r.req.Watch(e)
}

// change edits the status and tells the watcher.
func (r *Run) change(edit func(*Status)) {
	r.mu.Lock()
	edit(&r.status)
	s := r.copyStatus()
	r.mu.Unlock()
	r.watch(Event{Status: &s})
}

// build makes the chain, layer after layer.
func (r *Run) build() {
	layers, err := r.chain()
	now := r.b.cfg.Now().UTC()
	if err != nil {
		r.err = err
		r.letGo()
	} else {
		r.result = &Result{Layers: layers, Release: r.letGo}
	}
	r.change(func(s *Status) {
		s.FinishedAt, s.Status = &now, StateReady
		if err != nil {
			s.Status, s.Error = StateFailed, asFailure(err)
			for i := range s.Layers {
				if s.Layers[i].State != StateReady {
					s.Layers[i].State = StateFailed
					break
				}
			}
		}
	})
	r.log.close()
	close(r.done)
}

func asFailure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Kind: KindInternal, Index: -1, ExitCode: -1, Tail: []string{}, Message: "the build failed inside the server; its log tells why", cause: err}
}

func (r *Run) chain() ([]Layer, error) {
	if f := missingTool(r.req.Base, r.req.Packages); f != nil {
		r.say(f.Manager, "failed: "+f.Message)
		return nil, f
	}
	var layers []Layer
	var below []*Layer
	parent := ""
	for i, step := range unplaced(r.req.Base, r.req.Packages) {
		step.place(r.req.Base, r.req.Generation, parent)
		step.setEpoch(r.b.epoch(step, r.req.Fresh))
		start := r.b.cfg.Now()
		l, hit, err := r.layer(i, step, below)
		took := r.b.cfg.Now().Sub(start)
		if err != nil {
			return nil, step.blame(err, r.req.Base.Template)
		}
		r.b.store.used(l.Key, r.b.cfg.Now())
		one := *l
		one.Hit, one.Duration = hit, took
		layers, below, parent = append(layers, one), append(below, l), l.Key
		r.change(func(s *Status) {
			s.Layers[i] = LayerStatus{Manager: step.Manager, State: StateReady, Hit: &hit, Key: l.Key, Digest: l.Digest, SizeBytes: l.SizeBytes,
				DurationMS: took.Milliseconds(), Packages: l.Versions}
		})
	}
	return layers, nil
}

// blame has the failure of a step that the template asks for say so: whoever
// reads it finds the entry in no list of the environment.
func (s Step) blame(err error, template string) error {
	var f *Failure
	if !s.OfTemplate || !errors.As(err, &f) {
		return err
	}
	told := *f // others share it
	told.Message = fmt.Sprintf("packages of the template %s: %s", template, f.Message)
	return &told
}

// layer finds or builds one layer of the chain and pins it.
func (r *Run) layer(i int, step Step, below []*Layer) (*Layer, bool, error) {
	for {
		l, j, err := r.b.attach(r, step, below)
		if errors.Is(err, errStopping) {
			select {
			case <-j.done:
				continue
			case <-r.ctx.Done():
				return nil, false, cancelled(step.Manager)
			}
		}
		if err != nil {
			return nil, false, err
		}
		if l != nil {
			r.pinned = append(r.pinned, l.Key)
			r.say(step.Manager, fmt.Sprintf("layer %.12s is there: nothing to install", l.Key))
			return l, true, nil
		}
		l, err = r.follow(i, step, j)
		var f *Failure
		if errors.As(err, &f) && f.Kind == KindCancelled && r.ctx.Err() == nil {
			continue // the others gave up as this run came: it wants the layer still
		}
		return l, false, err
	}
}

// follow waits for a job in the name of this run.
func (r *Run) follow(i int, step Step, j *job) (*Layer, error) {
	j.log.follow(&r.log)
	defer j.log.unfollow(&r.log)
	began := j.began
	r.change(func(s *Status) { s.Layers[i].Key = step.Key })
	for {
		select {
		case <-began:
			began = nil
			r.change(func(s *Status) { s.Status, s.Layers[i].State = StateBuilding, StateBuilding })
		case <-j.done:
			if j.failure != nil {
				return nil, j.failure
			}
			r.pinned = append(r.pinned, step.Key)
			return j.layer, nil
		case <-r.ctx.Done():
			if r.b.detach(j) { // settled in the meantime: its pin is this run's
				r.pinned = append(r.pinned, step.Key)
			}
			return nil, cancelled(step.Manager)
		}
	}
}

func (r *Run) say(manager, text string) {
	r.log.add(Line{Time: r.b.cfg.Now(), Manager: manager, Text: text})
}
