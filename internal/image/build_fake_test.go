package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeBoxes opens boxes whose pip installs by writing a file: for the rules of
// the builder, which need no real manager.
type fakeBoxes struct {
	dir     string
	opened  atomic.Int64
	open    atomic.Int64
	most    atomic.Int64 // installs that ran at once
	running atomic.Int64
	usage   BoxUsage
	// install, if set, decides how an install ends; output is what the tool says.
	install func(ctx context.Context, specs []string) (code int, output string, err error)

	mu    sync.Mutex
	specs []string // what was installed, joined, in order
}

func (f *fakeBoxes) set(install func(ctx context.Context, specs []string) (int, string, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.install = install
}

type fakeBox struct {
	f         *fakeBoxes
	upper     string
	installed []string
}

func (f *fakeBoxes) Open(_ context.Context, spec BoxSpec) (Box, error) {
	n := f.opened.Add(1)
	f.open.Add(1)
	b := &fakeBox{f: f, upper: filepath.Join(f.dir, fmt.Sprint("box", n))}
	return b, os.Mkdir(b.upper, 0o755)
}

func (b *fakeBox) Run(ctx context.Context, c BoxCommand) (BoxExit, error) {
	switch {
	case len(c.Args) > 4 && c.Args[1] == "-c" && c.Args[3] == "install":
		if n := b.f.running.Add(1); n > b.f.most.Load() {
			b.f.most.Store(n)
		}
		defer b.f.running.Add(-1)
		specs := c.Args[5:]
		b.f.mu.Lock()
		b.f.specs = append(b.f.specs, strings.Join(specs, " "))
		b.f.mu.Unlock()
		b.f.mu.Lock()
		install := b.f.install
		b.f.mu.Unlock()
		if install != nil {
			code, output, err := install(ctx, specs)
			fmt.Fprint(c.Output, output)
			if code != 0 || err != nil {
				return BoxExit{Code: code}, err
			}
		}
		for _, s := range specs {
			if !strings.HasPrefix(s, "skipped") {
				parsed, _ := parseSpec("pip", s)
				b.installed = append(b.installed, parsed.name)
			}
		}
		if err := os.MkdirAll(b.upper+"/usr/lib", 0o755); err != nil {
			return BoxExit{}, err
		}
		list := []map[string]any{}
		for _, s := range b.installed {
			list = append(list, map[string]any{"name": s, "version": "1", "new": true})
		}
		text, _ := json.Marshal(map[string]any{"installed": list})
		c.Stdout.Write(append(text, '\n'))
		return BoxExit{}, os.WriteFile(b.upper+"/usr/lib/x", []byte(strings.Join(specs, " ")), 0o644)
	}
	return BoxExit{}, nil
}

func (b *fakeBox) Reached() []Contact                      { return nil }
func (b *fakeBox) Usage(context.Context) (BoxUsage, error) { return b.f.usage, nil }
func (b *fakeBox) Tree(context.Context) (string, error)    { return b.upper, nil }
func (b *fakeBox) Close(context.Context) error             { b.f.open.Add(-1); return os.RemoveAll(b.upper) }
func pipList(specs ...string) Packages                     { return Packages{Pip: specs} }
func fakeBase() *Base {
	return &Base{Digest: "base", Dir: "/", Arch: "amd64", Managers: map[string]string{"pip": "1"}}
}
func (f *fakeBoxes) request(specs ...string) Request {
	return Request{Base: fakeBase(), Packages: pipList(specs...)}
}
func newFake(t *testing.T, cfg BuilderConfig) (*Builder, *fakeBoxes) {
	t.Helper()
	f := &fakeBoxes{dir: t.TempDir()}
	cfg.LayersDir, cfg.OpenBox = t.TempDir(), f.Open
	b, err := NewBuilder(cfg)
	must(t, err)
	t.Cleanup(func() {
		b.Close()
		if n := f.open.Load(); n != 0 {
			t.Errorf("%d boxes were left open", n)
		}
		if left, _ := os.ReadDir(filepath.Join(cfg.LayersDir, scratchName)); len(left) > 0 {
			t.Errorf("scratch was left: %v", left)
		}
	})
	return b, f
}

func TestOneBuildForAll(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	gate := make(chan struct{})
	f.set(func(context.Context, []string) (int, string, error) { <-gate; return 0, "done\n", nil })
	var runs []*Run
	for range 20 {
		r, err := b.Start(f.request("a", "b"))
		must(t, err)
		runs = append(runs, r)
	}
	// One who does not wait any more changes nothing.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := runs[0].Wait(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	runs[1].Cancel()
	close(gate)
	for i, r := range runs {
		res, err := r.Wait(t.Context())
		if i == 1 {
			var f *Failure
			if err != nil && (!errors.As(err, &f) || f.Kind != KindCancelled) {
				t.Errorf("the cancelled one got %v", err)
			}
			continue
		}
		must(t, err)
		if len(res.Layers) != 1 || len(res.Layers[0].Versions) != 2 || !strings.Contains(string(r.Log().Text()), "pip: done") {
			t.Errorf("run %d: %+v\n%s", i, res, r.Log().Text())
		}
		if s := r.Status(); s.Status != StateReady || s.Layers[0].Hit == nil || s.FinishedAt == nil || s.Layers[0].Packages[0].Name != "a" {
			t.Errorf("run %d: status %+v", i, s)
		}
		if i%2 == 0 {
			res.Release()
			res.Release()
		} else {
			r.Release()
		}
	}
	if n := f.opened.Load(); n != 1 {
		t.Errorf("%d boxes were opened", n)
	}
	res, err := b.Build(t.Context(), f.request("a", "b"))
	must(t, err)
	if !res.Layers[0].Hit || f.opened.Load() != 1 {
		t.Error("the second build is no hit")
	}
	res.Release()
	waitFor(t, "pins to go", func() bool { b.store.mu.Lock(); defer b.store.mu.Unlock(); return len(b.store.pins) == 0 })
}

// waitFor polls a condition until it holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCancelReachesTheBox(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	f.set(func(ctx context.Context, _ []string) (int, string, error) { <-ctx.Done(); return 0, "", ctx.Err() })
	first, err := b.Start(f.request("a"))
	must(t, err)
	second, err := b.Start(f.request("a"))
	must(t, err)
	waitFor(t, "the install", func() bool { return f.running.Load() == 1 && second.Status().Status == StateBuilding })
	first.Cancel()
	<-first.Done()
	if f.running.Load() != 1 {
		t.Error("the build ended although somebody wants it")
	}
	second.Cancel()
	_, err = second.Wait(t.Context())
	var fail *Failure
	if !errors.As(err, &fail) || fail.Kind != KindCancelled {
		t.Errorf("got %v", err)
	}
	f.set(nil)
	if _, err := b.Build(t.Context(), f.request("a")); err != nil {
		t.Errorf("after a cancel: %v", err)
	}
}

func TestFailureIsSharedAndNotKept(t *testing.T) {
	now := time.Now()
	b, f := newFake(t, BuilderConfig{Now: func() time.Time { return now }})
	gate := make(chan struct{})
	f.install = func(context.Context, []string) (int, string, error) {
		<-gate
		return 1, "ERROR: No matching distribution found for bbb\n", nil
	}
	one, err := b.Start(f.request("aaa", "bbb==1"))
	must(t, err)
	two, err := b.Start(f.request("aaa", "bbb==1"))
	must(t, err)
	waitFor(t, "both to follow one build", func() bool { return one.Status().Status == StateBuilding && two.Status().Status == StateBuilding })
	close(gate)
	_, err1 := one.Wait(t.Context())
	_, err2 := two.Wait(t.Context())
	var fail *Failure
	if !errors.As(err1, &fail) || err1 != err2 || fail.Kind != KindPackageNotFound || fail.Package != "bbb==1" || fail.Index != 1 || fail.ExitCode != 1 || fail.Attempts != 1 {
		t.Errorf("got %+v and %v", err1, err2)
	}
	if s := two.Status(); s.Status != StateFailed || s.Error != fail || s.Layers[0].State != StateFailed {
		t.Errorf("status %+v", s)
	}
	opened := f.opened.Load()
	auto := f.request("aaa", "bbb==1")
	auto.Automatic = true
	if _, err := b.Build(t.Context(), auto); err != err1 || f.opened.Load() != opened {
		t.Errorf("an automatic attempt at once: %v", err)
	}
	if _, err := b.Build(t.Context(), f.request("aaa", "bbb==1")); err == nil || f.opened.Load() == opened {
		t.Error("a person's request was not tried again")
	}
	now = now.Add(time.Minute)
	f.set(nil)
	if _, err := b.Build(t.Context(), auto); err != nil {
		t.Errorf("a later automatic attempt: %v", err)
	}
}

func TestAttempts(t *testing.T) {
	tests := []struct {
		name     string
		output   string
		err      error
		attempts int
		kind     Kind
	}{
		{"unreachable", "Could not fetch URL x: Connection refused\n", nil, 3, KindRegistryUnreachable},
		{"compile error", "error: foo.c: no such file\n", nil, 1, KindInstallError},
		{"lost box", "", errors.New("the box is gone"), 2, KindInternal},
		{"disk", "OSError: [Errno 28] No space left on device\n", nil, 1, KindDiskFull},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, f := newFake(t, BuilderConfig{Backoff: []time.Duration{1, 1}})
			f.set(func(context.Context, []string) (int, string, error) { return 1, tt.output, tt.err })
			_, err := b.Build(t.Context(), f.request("a"))
			var fail *Failure
			if !errors.As(err, &fail) || fail.Kind != tt.kind || fail.Attempts != tt.attempts || int(f.opened.Load()) != tt.attempts {
				t.Errorf("got %+v (%v), %d boxes", fail, err, f.opened.Load())
			}
		})
	}
}

func TestLimits(t *testing.T) {
	for kind, usage := range map[Kind]BoxUsage{KindOutOfMemory: {OOMKills: 1}, KindDiskFull: {DiskFull: true}, KindTooManyProcesses: {PidsFull: true}} {
		b, f := newFake(t, BuilderConfig{})
		f.usage = usage
		f.set(func(context.Context, []string) (int, string, error) { return 1, "c++: fatal error\n", nil })
		_, err := b.Build(t.Context(), f.request("a"))
		var fail *Failure
		if !errors.As(err, &fail) || fail.Kind != kind {
			t.Errorf("want %s, got %v", kind, err)
		}
	}
	b, f := newFake(t, BuilderConfig{ManagerTimeout: 50 * time.Millisecond})
	f.set(func(ctx context.Context, _ []string) (int, string, error) { <-ctx.Done(); return 0, "", ctx.Err() })
	_, err := b.Build(t.Context(), f.request("a"))
	var fail *Failure
	if !errors.As(err, &fail) || fail.Kind != KindTimeout || fail.Message != "pip: not done after 50ms, the limit of packages.manager_timeout" || fail.Attempts != 1 {
		t.Errorf("got %v", err)
	}
}

// A registry that cannot be reached is the reason, also when the time ends in
// the attempt after it.
func TestTimeEndsInLaterAttempt(t *testing.T) {
	b, f := newFake(t, BuilderConfig{ManagerTimeout: 100 * time.Millisecond, Backoff: []time.Duration{1, 1}})
	f.set(func(ctx context.Context, _ []string) (int, string, error) {
		if f.opened.Load() == 1 {
			return 1, "Could not fetch URL x: Connection refused\n", nil
		}
		<-ctx.Done()
		return 0, "", ctx.Err()
	})
	_, err := b.Build(t.Context(), f.request("a"))
	var fail *Failure
	if !errors.As(err, &fail) || fail.Kind != KindRegistryUnreachable || fail.Attempts != 2 {
		t.Errorf("got %+v", fail)
	}
}

func TestSkippedPackageIsAFailure(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	_, err := b.Build(t.Context(), f.request("a", "skipped"))
	var fail *Failure
	if !errors.As(err, &fail) || fail.Kind != KindInstallError || fail.Index != 1 || !strings.Contains(fail.Message, `does not list "skipped"`) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Build(t.Context(), f.request("a", "skipped; os_name == 'nt'")); err != nil {
		t.Errorf("a marker that does not hold: %v", err)
	}
}

func TestMissingToolchain(t *testing.T) {
	b, f := newFake(t, BuilderConfig{})
	req := f.request("a")
	req.Packages.Cargo = []string{"ripgrep"}
	_, err := b.Build(t.Context(), req)
	var fail *Failure
	if !errors.As(err, &fail) || fail.Kind != KindToolchainMissing || fail.Manager != "cargo" || f.opened.Load() != 0 {
		t.Errorf("got %v after %d boxes", err, f.opened.Load())
	}
}

func TestFreshness(t *testing.T) {
	now := time.Now()
	b, f := newFake(t, BuilderConfig{Now: func() time.Time { return now }, MaxAge: time.Hour})
	build := func(fresh bool, specs ...string) Layer {
		t.Helper()
		req := f.request(specs...)
		req.Fresh = fresh
		res, err := b.Build(t.Context(), req)
		must(t, err)
		res.Release()
		return res.Layers[0]
	}
	first, pinned := build(false, "a"), build(false, "a==1")
	if l := build(false, "a"); !l.Hit || l.Key != first.Key {
		t.Error("a young layer is not shared")
	}
	fresh := build(true, "a")
	if fresh.Hit || fresh.Key == first.Key || fresh.Epoch != 1 {
		t.Errorf("a rebuild gave %+v", fresh)
	}
	if l := build(false, "a"); l.Key != fresh.Key {
		t.Error("the newest layer is not shared")
	}
	now = now.Add(2 * time.Hour)
	if l := build(false, "a==1"); !l.Hit || l.Key != pinned.Key {
		t.Error("a pinned list has an age")
	}
	if l := build(false, "a"); l.Hit || l.Epoch != 2 {
		t.Errorf("an old unpinned layer was shared: %+v", l)
	}
	if _, err := b.LayerDirs([]string{first.Key, fresh.Key}); err != nil {
		t.Errorf("older layers are gone: %v", err)
	}
}

func TestParallel(t *testing.T) {
	b, f := newFake(t, BuilderConfig{MaxParallel: 2})
	meet := make(chan struct{})
	f.install = func(ctx context.Context, _ []string) (int, string, error) {
		select { // the first two installs must meet here
		case meet <- struct{}{}:
		case <-meet:
		case <-ctx.Done():
		}
		return 0, "", nil
	}
	var runs []*Run
	for i := range 6 {
		r, err := b.Start(f.request(fmt.Sprint("p", i)))
		must(t, err)
		runs = append(runs, r)
	}
	for _, r := range runs {
		_, err := r.Wait(t.Context())
		must(t, err)
	}
	if n := f.most.Load(); n != 2 {
		t.Errorf("%d installs ran at once, want 2", n)
	}
}
