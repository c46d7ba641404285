package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// quietAfter is how long a tool may say nothing before the log says so.
const quietAfter = 5 * time.Minute

// job is the build of one layer, shared by all who want its key.
type job struct {
	b      *Builder
	base   *Base
	step   Step
	specs  []spec
	below  []*Layer // of the chain under the layer, lowest first; the owners of the interest keep them pinned
	log    Log
	ctx    context.Context
	cancel context.CancelFunc
	began  chan struct{} // closed when it starts for the first time
	place  *place        // in the builder's queue
	done   chan struct{} // closed when layer or failure is set

	interest int // runs that want the outcome; the builder's mu guards it
	settled  bool

	layer    *Layer
	failure  *Failure
	attempts int
	plain    bool     // the download cache is left out: it was refused
	ending   []func() // what is done after everyone has the layer
}

func newJob(b *Builder, base *Base, s Step, below []*Layer) *job {
	j := &job{b: b, base: base, step: s, below: append([]*Layer(nil), below...), interest: 1,
		began: make(chan struct{}), place: &place{}, done: make(chan struct{})}
	for _, e := range s.Entries {
		parsed, _ := parseSpec(s.Manager, e) // checked at Start
		j.specs = append(j.specs, parsed)
	}
	j.ctx, j.cancel = context.WithCancel(b.life)
	return j
}

func (j *job) say(text string) {
	j.log.add(Line{Time: j.b.cfg.Now(), Manager: j.step.Manager, Text: text})
}

// pause waits before another attempt, and then for a place again: meanwhile
// others install. It reports whether ctx has not ended.
func (j *job) pause(ctx context.Context, length time.Duration) bool {
	j.b.queue.leave(j.place)
	select {
	case <-time.After(length):
		return j.b.queue.enter(ctx, j.place) == nil
	case <-ctx.Done():
		return false
	}
}

// run waits for its place in the queue, tries until there is an outcome, and settles it.
func (j *job) run() {
	defer j.cancel()
	for _, l := range j.below {
		// The runs that want this job may be cancelled while it still stops.
		if j.b.store.pin(l.Key) {
			defer j.b.store.unpin(l.Key)
		}
	}
	j.tries()
	if f := j.failure; f != nil {
		j.say("failed: " + f.Message)
		j.b.cfg.Logger.Info("package build failed", "manager", f.Manager, "kind", string(f.Kind), "key", j.step.Key, "attempts", f.Attempts, "cause", f.cause)
	}
	j.log.close()
	j.b.settle(j)
	for _, f := range j.ending {
		f()
	}
}

func (j *job) tries() {
	err := j.b.queue.enter(j.ctx, j.place)
	defer j.b.queue.leave(j.place)
	close(j.began)
	if err != nil {
		j.failure = cancelled(j.step.Manager)
		return
	}
	ctx, cancel := context.WithTimeout(j.ctx, j.b.cfg.ManagerTimeout)
	defer cancel()
	start := j.b.cfg.Now()
	for {
		j.attempts++
		before := j.plain
		layer, failure := j.attempt(ctx, start)
		if failure == nil {
			j.layer, j.failure = layer, nil
			return
		}
		if former := j.failure; former != nil && failure.Kind == KindTimeout {
			// Why it was tried again says more than that there was no time left.
			failure = former
		}
		failure.Attempts = j.attempts
		j.failure = failure
		if j.plain && !before && ctx.Err() == nil {
			j.say("a download of an earlier build is out of date: again without them")
			continue
		}
		if !failure.retryable() || j.attempts > len(j.b.cfg.Backoff) || ctx.Err() != nil {
			return
		}
		pause := j.b.cfg.Backoff[j.attempts-1]
		pause += time.Duration((rand.Float64() - 0.5) / 2 * float64(pause))
		j.say(fmt.Sprintf("attempt %d: %s; trying again in %.1f s", j.attempts, failure.Message, pause.Seconds()))
		if !j.pause(ctx, pause) {
			if j.ctx.Err() != nil {
				j.failure = cancelled(j.step.Manager)
			}
			return
		}
	}
}

func cancelled(manager string) *Failure {
	return &Failure{Manager: manager, Kind: KindCancelled, Index: -1, ExitCode: -1, Tail: []string{}, Message: manager + ": the build was cancelled"}
}

// internal tells of an error in which no tool's words say what happened.
func (j *job) internal(err error) *Failure {
	f := &Failure{Manager: j.step.Manager, Kind: KindInternal, Index: -1, ExitCode: -1, Attempts: j.attempts, Tail: []string{}, cause: err,
		Message: j.step.Manager + ": the build failed inside the server; its log tells why"}
	var tree *treeError
	switch {
	case errors.As(err, &tree):
		f.Kind, f.Message = KindInstallError, j.step.Manager+": "+tree.Error()
	case errors.Is(err, errSandboxRoom):
		f.Kind, f.Message = KindDiskFull, j.step.Manager+": what the install left takes more room than the disk of a build has"
	case errors.Is(err, errHostReserve):
		f.Kind, f.Message = KindDiskFull, j.step.Manager+": the server's disk has no room for what the install left: the rest of it is kept free"
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		f.Kind, f.Message = KindDiskFull, j.step.Manager+": the server's disk is full"
	}
	return f
}

// attempt opens a box, installs, and commits. What it made is gone afterwards,
// unless it is a layer: then the box goes when everyone has the layer.
func (j *job) attempt(ctx context.Context, start time.Time) (_ *Layer, failed *Failure) {
	dirs := boxLayers(j.base, j.below)
	out := &lineWriter{emit: j.say, now: j.b.cfg.Now, lastAt: j.b.cfg.Now()}
	var refused []Contact
	fail := func(box Box, in *install, err error) (*Layer, *Failure) {
		return nil, j.explain(ctx, box, in, out, refused, err)
	}
	offered := j.offered()
	box, err := j.open(ctx, dirs, offered)
	if err != nil {
		j.closeView(offered)
		return fail(nil, nil, fmt.Errorf("opening a builder sandbox: %w", err))
	}
	in := &install{box: box, step: j.step, specs: j.specs, out: out, say: j.say, probe: j.base.Managers[j.step.Manager] == "",
		offered: offered, caching: j.b.cfg.Downloads != nil}
	upper := ""
	defer func() {
		end := func() { j.closeBox(ctx, box, offered) }
		if failed == nil {
			j.ending = append(j.ending, func() { j.keepDownloads(in, upper) }, end)
			return
		}
		j.plain = j.plain || offered != nil && (errors.Is(err, errStale) || saysStale(out.lines()))
		end()
	}()
	stopWatch := j.watchQuiet(ctx, out)
	added, before, err := in.run(ctx, j.b.knownListing(j.step, j.base))
	stopWatch()
	refused = refusals(box)
	if err != nil {
		return fail(box, in, err)
	}
	for _, c := range refused {
		at := c.Host
		if c.Port != 0 {
			at = net.JoinHostPort(c.Host, strconv.Itoa(c.Port))
		}
		j.say("warning: the install was kept from " + at + ", and did without")
	}
	if recipes[j.step.Manager].list != nil {
		j.b.rememberListing(j.step, j.base, before)
	}
	upper, err = box.Tree(ctx)
	if err != nil {
		return fail(box, nil, fmt.Errorf("reading what was written: %w", err))
	}
	if err = j.checkDownloads(offered, upper); err != nil {
		return fail(nil, nil, err)
	}
	l := &Layer{Key: j.step.Key, Parent: j.step.Parent, Manager: j.step.Manager, Entries: j.step.Entries, Base: j.base.Digest, Arch: j.base.Arch,
		Recipe: recipes[j.step.Manager].version, Family: j.step.Family, Epoch: j.step.Epoch, Pinned: j.step.Pinned, Versions: added,
		CreatedAt: j.b.cfg.Now().UTC(), Took: j.b.cfg.Now().Sub(start).Milliseconds()}
	if err := j.b.store.commit(ctx, l, upper, topFirst(dirs), j.log.Text()); err != nil {
		return fail(nil, nil, err)
	}
	fresh := 0
	for _, v := range added {
		if !v.present {
			fresh++
		}
	}
	if fresh < len(added) {
		j.say(fmt.Sprintf("%d of the listed packages were there already", len(added)-fresh))
	}
	j.say(fmt.Sprintf("installed %d packages, %d files, %.1f MB in %.1f s", fresh, l.Files, float64(l.SizeBytes)/1e6, float64(l.Took)/1e3))
	return l, nil
}

// open opens the box of an attempt. The downloads that are offered lie on top
// of the layers, below what the box writes.
func (j *job) open(ctx context.Context, dirs []string, offered *view) (Box, error) {
	if offered != nil {
		dirs = append(slices.Clone(dirs), offered.dir)
	}
	return j.b.cfg.OpenBox(ctx, BoxSpec{Purpose: "install " + j.step.Manager, Layers: dirs, Env: boxEnv(j.base, j.step.Manager),
		Registries: j.base.Registries, Timeout: j.b.cfg.ManagerTimeout + time.Minute})
}

// closeBox removes the box of an attempt and what it stood on, also after a
// cancel.
func (j *job) closeBox(ctx context.Context, box Box, offered *view) {
	closing, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer done()
	if err := box.Close(closing); err != nil {
		j.b.cfg.Logger.Error("closing a builder sandbox", "key", j.step.Key, "error", err)
	}
	j.closeView(offered)
}

// explain turns what ended an attempt into a failure.
func (j *job) explain(ctx context.Context, box Box, in *install, out *lineWriter, refused []Contact, err error) *Failure {
	if j.ctx.Err() != nil {
		return cancelled(j.step.Manager)
	}
	timedOut := ctx.Err() != nil
	e := evidence{manager: j.step.Manager, specs: j.specs, current: -1, lines: out.lines(), refused: refused,
		timedOut: timedOut, limit: j.b.cfg.ManagerTimeout.String()}
	if box != nil {
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if u, uerr := box.Usage(asking); uerr == nil {
			e.usage = u
		}
	}
	if in != nil {
		e.exit, e.current = in.exit, in.at
	}
	var known *knownFailure
	switch {
	case errors.As(err, &known) && !timedOut:
		f := &Failure{Manager: j.step.Manager, Kind: known.kind, Package: known.pkg, Index: known.index, ExitCode: e.exit.Code, Tail: tailOf(e.lines)}
		f.Message = j.step.Manager + ": " + known.phrase
		return f
	case errors.Is(err, errTool) && !timedOut:
		f := classify(e)
		if f.Kind == KindPackageNotFound {
			if said := in.hidden(ctx, f.Index); len(said) > 0 {
				e.lines = append(said[len(said)-1:], e.lines...)
				e.refused = refusals(box)
				tail := f.Tail
				f = classify(e)
				f.Tail = tail
			}
		}
		return j.name(ctx, in, e, f)
	case timedOut:
		return classify(e)
	case e.usage.DiskFull || e.usage.OOMKills > 0:
		return classify(e) // the box was lost to a limit
	}
	return j.internal(err)
}

func refusals(box Box) []Contact {
	var out []Contact
	for _, c := range box.Reached() {
		if !c.Allowed {
			out = append(out, Contact{Host: cleanLine([]byte(c.Host)), Port: c.Port, Count: c.Count})
		}
	}
	return out
}

// watchQuiet reports a tool that says nothing for long; it is not ended for it.
func (j *job) watchQuiet(ctx context.Context, out *lineWriter) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(quietAfter)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if idle := out.idle(j.b.cfg.Now()); idle >= quietAfter {
					j.say(fmt.Sprintf("no output for %d minutes", int(idle.Minutes())))
				}
			}
		}
	}()
	return func() { cancel(); <-ended }
}
