package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/image"
)

// keptLines bounds the lines of a template build that a run keeps.
const keptLines = 5000

// buildRun is one build for an environment: the template if it is missing, then
// the package layers. Many wait for it, and a person may watch it.
type buildRun struct {
	key         runKey
	workspace   string // of the environment
	environment string
	wish        wish
	wanted      string // the wish's hash
	began       time.Time
	done        chan struct{}   // closed by finish
	ctx         context.Context // ends when nobody wants it any more, and with the run
	cancel      context.CancelFunc

	waiters  int  // who called start and not leave yet; the mu of Builds guards it
	orphaned bool // the environment does not ask for it; the mu of Builds guards it

	mu      sync.Mutex // guards what follows
	base    *image.Base
	stage   []string // what the template's build said, lines without newlines
	layers  *image.Run
	changed chan struct{} // closed and replaced when there is more to know
	root    Root
	err     error
	ends    time.Time
	final   *image.Status // the layers' last status
}

func newBuildRun(ctx context.Context, workspace, environment string, w wish) *buildRun {
	r := &buildRun{key: runKey{environment, w.hash()}, workspace: workspace, environment: environment, wish: w, wanted: w.hash(), began: time.Now().UTC(),
		done: make(chan struct{}), changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(ctx)
	return r
}

// wait waits for the outcome.
func (r *buildRun) wait(ctx context.Context) (Root, error) {
	select {
	case <-r.done:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.root, r.err
	case <-ctx.Done():
		return Root{}, ctx.Err()
	}
}

// made is the root that the run made; not ok while and if it has none.
func (r *buildRun) made() (Root, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.root, r.ended() && r.err == nil
}

func (r *buildRun) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// wake tells followers that there is more to know; the caller holds mu.
func (r *buildRun) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// finish sets the outcome.
func (r *buildRun) finish(root Root, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.root, r.err, r.ends = root, err, time.Now().UTC()
	if r.layers != nil {
		status := r.layers.Status()
		r.final = &status
	}
	close(r.done)
	r.wake()
}

// based notes the base that the layers go on.
func (r *buildRun) based(base *image.Base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base = base
	r.wake()
}

// layering notes the build of the layers.
func (r *buildRun) layering(layers *image.Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.layers = layers
	r.wake()
}

// Stage implements image.Progress.
func (r *buildRun) Stage(name string) { r.Log(name) }

// Percent implements image.Progress; a log has no use for it.
func (r *buildRun) Percent(float64) {}

// Log implements image.Progress.
func (r *buildRun) Log(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stage) < keptLines {
		r.stage = append(r.stage, time.Now().UTC().Format("2006-01-02T15:04:05.000Z")+" template "+r.wish.Template+": "+line)
		r.wake()
	}
}

// read returns the log's lines from an offset on, whether it is complete, and a
// channel that is closed when there may be more.
func (r *buildRun) read(from int) (lines []string, next int, complete bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	complete, changed = r.ended(), r.changed
	if from < len(r.stage) {
		lines = append(lines, r.stage[from:]...)
		from = len(r.stage)
	}
	if r.layers == nil {
		return lines, from, complete, changed
	}
	// The template's part is complete once there are layers.
	more, next, _, grown := r.layers.Log().Read(from - len(r.stage))
	for _, l := range more {
		lines = append(lines, l.String())
	}
	if !complete && len(more) == 0 {
		select { // the layers' log is what grows now, unless it is closed
		case <-grown:
		default:
			changed = grown
		}
	}
	return lines, next + len(r.stage), complete, changed
}

// status is the run as people see it.
func (r *buildRun) status() api.Build {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := api.Build{Type: "environment_build", EnvironmentID: r.environment, Status: api.BuildBuilding,
		Template: r.wish.Template, Layers: []api.BuildLayer{}, StartedAt: &r.began}
	if r.base != nil {
		out.BaseDigest = r.base.Digest
	}
	if status := r.layerStatus(); status != nil {
		fillLayers(&out, status)
	}
	if !r.ended() {
		out.DurationMS = time.Since(r.began).Milliseconds()
		return out
	}
	ends := r.ends
	out.FinishedAt, out.DurationMS = &ends, ends.Sub(r.began).Milliseconds()
	out.Status = api.BuildReady
	if r.err != nil {
		out.Status = api.BuildFailed
		if out.Error == nil {
			out.Error = &api.BuildError{Kind: string(image.KindInternal), Index: -1, Message: publicBuildError(r.wish.Template)}
		}
	}
	return out
}

// layerStatus is the newest status of the layers, or nil; the caller holds mu.
func (r *buildRun) layerStatus() *image.Status {
	if r.final != nil || r.layers == nil {
		return r.final
	}
	status := r.layers.Status()
	return &status
}

// publicBuildError is what a person sees of a failure outside the packages. Its
// cause may name the host's paths and stands in the server's log.
func publicBuildError(template string) string {
	return fmt.Sprintf("The template %q could not be prepared; the server's log tells why.", template)
}

// fillLayers copies the builder's status into the wire's.
func fillLayers(out *api.Build, status *image.Status) {
	for _, l := range status.Layers {
		layer := api.BuildLayer{Manager: l.Manager, State: string(l.State), Hit: l.Hit != nil && *l.Hit, Key: l.Key,
			SizeBytes: l.SizeBytes, DurationMS: l.DurationMS, Packages: []api.BuildPackage{}}
		for _, p := range l.Packages {
			layer.Packages = append(layer.Packages, api.BuildPackage{Name: p.Name, Version: p.Version, Requested: p.Requested})
		}
		if layer.Hit {
			out.CacheHits++
		}
		out.Layers = append(out.Layers, layer)
	}
	if f := status.Error; f != nil {
		out.Error = buildError(f)
	}
}

// buildError is a failed install on the wire.
func buildError(f *image.Failure) *api.BuildError {
	return &api.BuildError{Manager: f.Manager, Kind: string(f.Kind), Package: f.Package, Index: f.Index,
		ExitCode: f.ExitCode, Attempts: f.Attempts, Message: f.Message, Tail: strings.Join(f.Tail, "\n")}
}
