package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// tmpMark is the file in /tmp that keeps gVisor from covering an empty /tmp
// with memory; the guest removes it when it starts.
const tmpMark = "/tmp/.atoll-start"

// Create makes a sandbox and starts it.
func (e *Engine) Create(ctx context.Context, spec sandbox.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	spec, err := e.complete(spec)
	if err != nil {
		return fmt.Errorf("creating sandbox: %w", err)
	}
	unlock, err := e.lock(ctx, spec.ID)
	if err != nil {
		return err
	}
	defer unlock()
	p := e.place(spec.ID)
	if exists(p.dir) {
		return sandbox.ErrExists
	}
	settled, err := e.admit(ctx, spec.ID, claim{disk: spec.Limits.DiskBytes, tasks: HostTasks(spec.Limits.Processes)})
	if err != nil {
		return fmt.Errorf("creating sandbox: %w", err)
	}
	defer settled()
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return sandbox.ErrExists
		}
		return fmt.Errorf("creating sandbox: %w", err)
	}
	err = e.build(ctx, p, spec)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		err = withLastWords(err, p)
		if derr := e.destroy(context.WithoutCancel(ctx), spec.ID); derr != nil {
			e.log.ErrorContext(ctx, "undoing a failed sandbox", "sandbox", spec.ID, "error", derr)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("creating sandbox: %w", err)
	}
	return nil
}

// withLastWords adds to err what gVisor's processes left behind when they could
// not start. Nothing of a sandbox's own is in it: no program has run yet.
func withLastWords(err error, p place) error {
	for _, path := range []string{filepath.Join(p.bundle(), launchErrorFile), p.panicLog()} {
		if text, rerr := os.ReadFile(path); rerr == nil && len(text) > 0 {
			err = fmt.Errorf("%w (%.500q)", err, text)
		}
	}
	return err
}

// complete checks a spec and fills in its defaults.
func (e *Engine) complete(s sandbox.Spec) (sandbox.Spec, error) {
	if err := checkID(s.ID); err != nil {
		return s, err
	}
	if len(s.Layers) == 0 {
		return s, errors.New("no layers given")
	}
	s.Limits = withDefaults(s.Limits, e.config.DefaultLimits)
	if s.Limits.MemoryBytes < 0 || s.Limits.CPUs < 0.01 || s.Limits.Processes < 2 || s.Limits.DiskBytes < 16<<20 {
		return s, fmt.Errorf("limits %+v are too small to run", s.Limits)
	}
	s.Limits.DiskBytes = (s.Limits.DiskBytes + 4095) &^ 4095
	if s.Hostname == "" {
		s.Hostname = "sandbox"
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	for _, dir := range append([]string{s.Dir}, s.Dirs...) {
		if !filepath.IsAbs(dir) {
			return s, fmt.Errorf("directory %q is not absolute", dir)
		}
	}
	return s, nil
}

// build makes all parts of a sandbox in its empty directory. On error the
// caller destroys what there is.
func (e *Engine) build(ctx context.Context, p place, s sandbox.Spec) error {
	clock := newStopwatch()
	m := meta{Labels: s.Labels, CreatedAt: time.Now().UTC(), Env: s.Env, Dir: s.Dir, Network: s.NetNS != "",
		Limits: s.Limits, Boot: e.boot}
	if err := writeJSON(p.meta(), m); err != nil {
		return err
	}
	for _, dir := range []string{p.disk(), p.root(), p.bundle(), p.run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := e.disks.create(ctx, s.Limits.DiskBytes, p.image(), p.disk()); err != nil {
		return err
	}
	if err := e.balanceNow(ctx); err != nil {
		return err
	}
	clock.lap("disk")
	if err := errors.Join(os.Mkdir(p.upper(), 0o755), os.Mkdir(p.work(), 0o700), os.Chmod(p.upper(), 0o755)); err != nil {
		return err
	}
	if err := mountOverlay(p.root(), s.Layers, p.upper(), p.work()); err != nil {
		return err
	}
	clock.lap("overlay")
	if err := fill(p.root(), s); err != nil {
		return err
	}
	clock.lap("files")
	if err := e.cgroups.create(s.ID, s.Limits); err != nil {
		return err
	}
	l := launch{CgroupProcs: e.cgroups.procs(s.ID), MemoryBytes: s.Limits.MemoryBytes, CPUs: processors(s.Limits.CPUs)}
	if err := writeJSON(filepath.Join(p.bundle(), launchFile), l); err != nil {
		return err
	}
	clock.lap("cgroups")
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.start(s.ID, p, ociSpec(p, s, e.guest.Name()), m, clock); err != nil {
		return err
	}
	e.log.DebugContext(ctx, "sandbox created", "sandbox", s.ID, clock.attr())
	return nil
}

// processors is how many processors a sandbox sees: its limit, rounded up, as far
// as the host has them.
func processors(limit float64) int { return min(int(math.Ceil(limit)), runtime.NumCPU()) }

// fill puts the spec's directories and files over the layers.
func fill(root string, s sandbox.Spec) error {
	place, err := openPlacer(root)
	if err != nil {
		return err
	}
	defer place.close()
	for _, dir := range append([]string{s.Dir}, s.Dirs...) {
		if err := place.mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for name, content := range s.Files {
		if err := place.write(name, content, 0o644); err != nil {
			return err
		}
	}
	if err := place.mkdir("/tmp", 0o1777); err != nil {
		return err
	}
	return place.write(tmpMark, nil, 0o600)
}

// start runs gVisor with the guest in it, for the first time or anew.
func (e *Engine) start(id string, p place, spec *specs.Spec, m meta, clock *stopwatch) error {
	ready, theirs, err := pipe(true)
	if err != nil {
		return err
	}
	defer ready.Close()
	c, conf, err := e.launch(p, spec, m, theirs)
	_ = theirs.Close()
	if err != nil {
		return err
	}
	clock.lap("gvisor_new")
	if err := c.Start(conf); err != nil {
		return fmt.Errorf("starting gvisor: %w", err)
	}
	clock.lap("gvisor_start")
	if err := awaitGuest(ready); err != nil {
		return fmt.Errorf("starting guest: %w", err)
	}
	clock.lap("guest")
	if err := os.WriteFile(p.ready(), nil, 0o600); err != nil {
		return err
	}
	e.keep(id, &box{meta: m, conf: conf, sandbox: c.Sandbox})
	return nil
}

// launch starts gVisor's processes for a sandbox; the kernel in them waits to be
// told what to run. ready, if process 1 is new, is where it reports.
func (e *Engine) launch(p place, spec *specs.Spec, m meta, ready *os.File) (*container.Container, *config.Config, error) {
	conf, err := e.gvisorConfig(p, m.Network)
	if err != nil {
		return nil, nil, err
	}
	if err := writeJSON(p.spec(), spec); err != nil {
		return nil, nil, err
	}
	args := container.Args{ID: containerID, Spec: spec, BundleDir: p.bundle()}
	if ready != nil {
		args.PassFiles = map[int]*os.File{3: ready}
	}
	c, err := container.New(conf, args)
	if err != nil {
		return nil, nil, fmt.Errorf("starting gvisor: %w", err)
	}
	e.reaper.add(c.GoferPid.Load(), c.Sandbox.Getpid())
	return c, conf, nil
}

// awaitGuest reads the guest's word that it has set the limits inside. The
// guest is our own program and nothing else runs in the sandbox yet.
func awaitGuest(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(guestTimeout)); err != nil {
		return err
	}
	word, err := io.ReadAll(io.LimitReader(ready, 1024))
	if err != nil {
		return err
	}
	if string(word) != "ok" {
		return fmt.Errorf("it said %q", word)
	}
	return nil
}

// guestTimeout bounds how long a sandbox may take to come up; on a host that
// starts many at once it is seconds.
const guestTimeout = 60 * time.Second
