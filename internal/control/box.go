package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Labels that tell this server's sandboxes apart after a crash.
const (
	labelKind      = "atoll.kind" // kindSession or kindBuild
	labelWorkspace = "atoll.workspace"

	kindSession = "session"
	kindBuild   = "build"
)

// Engine is the sandbox engine with its file operations.
type Engine interface {
	sandbox.Checkpointer
	sandbox.Files
}

// Network gives sandboxes their guarded network; *egress.Gateway does.
type Network interface {
	Open(ctx context.Context, id string, meta egress.Meta, p *egress.Policy) (netns string, err error)
	Reopen(ctx context.Context, id string) (netns string, err error)
	// Update puts a network, suspended or not, under another policy.
	Update(ctx context.Context, id string, p *egress.Policy) error
	// Suspend takes the namespaces of a sandbox that hibernates away and keeps
	// policy, names and records; Resume gives new ones. Both may be repeated.
	Suspend(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) (netns string, err error)
	Close(ctx context.Context, id string) error
	List(ctx context.Context) ([]string, error)
	// Broken tells whose networks were taken apart from outside, each once.
	Broken() []egress.Meta
	// Describe tells on whose behalf a network exists and what it may reach.
	Describe(id string) (egress.Meta, *egress.Policy, error)
	Records(id string, f egress.Filter) ([]egress.Record, error)
}

// Boxes opens builder sandboxes: normal sandboxes whose network reaches the
// template's registries only and that hold no secret.
type Boxes struct {
	// Engine makes the sandboxes. Required.
	Engine Engine
	// Network gives them what they may reach. Required.
	Network Network
	// Limits of one builder sandbox; zero fields are the engine's defaults.
	Limits sandbox.Limits
}

// Open implements image.OpenBox.
func (b *Boxes) Open(ctx context.Context, spec image.BoxSpec) (image.Box, error) {
	policy, err := buildPolicy(spec)
	if err != nil {
		return nil, err
	}
	var raw [8]byte
	rand.Read(raw[:])
	id := "build-" + hex.EncodeToString(raw[:])
	netns, err := b.Network.Open(ctx, id, egress.Meta{SessionID: id, Source: egress.SourceBuild}, policy)
	if err != nil {
		return nil, fmt.Errorf("opening the builder's network: %w", err)
	}
	box := &box{boxes: b, id: id}
	err = b.create(ctx, sandbox.Spec{
		ID: id, Hostname: "build", Layers: spec.Layers, Env: spec.Env, Dir: "/",
		Files: sandboxFiles("build"), Limits: b.Limits, NetNS: netns,
		Labels: map[string]string{labelKind: kindBuild, "atoll.purpose": spec.Purpose},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a builder sandbox: %w", err), box.closeNetwork(ctx))
	}
	if spec.Timeout > 0 {
		box.timer = time.AfterFunc(spec.Timeout, func() {
			box.expired()
		})
	}
	return box, nil
}

// builderPatience is how long a build waits for room on the host for its
// sandbox: other builds and sessions end meanwhile.
const builderPatience = 2 * time.Minute

// create makes the sandbox of a box, and waits for the host to have room for it.
func (b *Boxes) create(ctx context.Context, spec sandbox.Spec) error {
	for end := time.Now().Add(builderPatience); ; {
		err := b.Engine.Create(ctx, spec)
		if !errors.Is(err, sandbox.ErrCapacity) || !time.Now().Before(end) {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// buildPolicy lets a builder reach the registries, or, to learn them, any
// public host.
func buildPolicy(spec image.BoxSpec) (*egress.Policy, error) {
	p := egress.Spec{Mode: egress.ModeBuild, Endpoints: registryEndpoints(spec.Registries)}
	if spec.Observe {
		p = egress.Spec{Mode: egress.ModeObserve}
	}
	policy, err := egress.Compile(p)
	if err != nil {
		return nil, fmt.Errorf("compiling the builder's network policy: %w", err)
	}
	return policy, nil
}

// registryEndpoints names what allow_package_managers and builders may reach. A
// registry at a bare address is left out: the network decides by name only.
func registryEndpoints(regs []image.Registry) []egress.Endpoint {
	out := make([]egress.Endpoint, 0, len(regs))
	for _, r := range regs {
		if host, err := egress.Canonical(r.Host); err == nil {
			out = append(out, egress.Endpoint{Host: host, Port: r.Port, Rule: "registry:" + r.Manager})
		}
	}
	return out
}

// sandboxFiles are the files every sandbox starts with: name resolution that
// points at the gateway's stub, and its own host name.
func sandboxFiles(hostname string) map[string][]byte {
	files := maps.Clone(egress.Files())
	files["/etc/hostname"] = []byte(hostname + "\n")
	files["/etc/hosts"] = []byte("127.0.0.1 localhost\n127.0.0.1 " + hostname + "\n")
	return files
}

// box is one open builder sandbox.
type box struct {
	boxes *Boxes
	id    string
	timer *time.Timer

	mu      sync.Mutex
	last    image.BoxUsage // the highest use seen, for after a kill
	timeout bool
}

// expired ends everything in a box that outlived its time.
func (b *box) expired() {
	b.mu.Lock()
	b.timeout = true
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = b.boxes.Engine.Destroy(ctx, b.id) // Close reports what is left
}

// Run implements image.Box.
func (b *box) Run(ctx context.Context, cmd image.BoxCommand) (image.BoxExit, error) {
	merged := &lockedWriter{w: cmd.Output}
	c := sandbox.Command{Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Stdin: cmd.Stdin, Stderr: merged}
	if c.Stdout = merged; cmd.Stdout != nil {
		c.Stdout = cmd.Stdout
	}
	p, err := b.boxes.Engine.Exec(ctx, b.id, c)
	if err != nil {
		return image.BoxExit{}, b.lost(err)
	}
	stop := make(chan struct{})
	go b.watch(stop)
	exit, err := p.Wait(ctx)
	close(stop)
	if err != nil {
		kill, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = p.Signal(kill, int(syscall.SIGKILL)) // the box is closed next; this only hastens it
		return image.BoxExit{}, b.lost(err)
	}
	b.sample(context.WithoutCancel(ctx))
	return image.BoxExit{Code: exit.Code, Signal: exit.Signal}, nil
}

// lost says why a command did not end by itself.
func (b *box) lost(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timeout {
		return fmt.Errorf("builder sandbox ran out of time: %w", context.DeadlineExceeded)
	}
	return err
}

// watch samples the box's use once a second, because a limit that kills the
// whole sandbox leaves nothing to ask afterwards.
func (b *box) watch(stop <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			b.sample(context.Background())
		}
	}
}

func (b *box) sample(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	u, err := b.boxes.Engine.Usage(ctx, b.id)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last.MemoryBytes = max(b.last.MemoryBytes, u.MemoryBytes)
	b.last.DiskBytes = max(b.last.DiskBytes, u.DiskBytes)
	b.last.OOMKills = max(b.last.OOMKills, u.OOMKills)
	limits := b.boxes.Limits
	if limits.DiskBytes > 0 && u.DiskBytes > limits.DiskBytes-limits.DiskBytes/50 {
		b.last.DiskFull = true
	}
	// Those that met the limit may have ended by now, those that they started not.
	if limits.Processes > 0 && u.Processes >= limits.Processes-limits.Processes/20 {
		b.last.PidsFull = true
	}
}

// Reached implements image.Box.
func (b *box) Reached() []image.Contact {
	records, err := b.boxes.Network.Records(b.id, egress.Filter{})
	if err != nil {
		return nil
	}
	return contacts(records)
}

// contacts sums up records by what was asked for. A name that was looked up and
// refused is one only if no connection tells more of it.
func contacts(records []egress.Record) []image.Contact {
	type key struct {
		host    string
		port    int
		allowed bool
	}
	counts, named := map[key]int{}, map[string]bool{}
	var order []key
	add := func(k key, n int64) {
		if counts[k] == 0 {
			order = append(order, k)
		}
		counts[k] += int(max(1, n))
		named[k.host] = true
	}
	silent := map[int]bool{} // ports that were refused and on which nothing was said
	for _, r := range records {
		switch host := askedFor(r); {
		case r.Protocol == "dns":
		case host != "":
			add(key{host, r.DestPort, r.Verdict != egress.VerdictRefused}, r.Count) // one that failed was allowed
		case r.Verdict == egress.VerdictRefused && r.ClaimedHost == "":
			silent[r.DestPort] = true
		}
	}
	for _, r := range records {
		if r.Protocol == "dns" && r.Verdict == egress.VerdictRefused && r.Host != "" && !named[r.Host] {
			add(key{r.Host, only(silent), false}, r.Count)
		}
	}
	out := make([]image.Contact, 0, len(order))
	for _, k := range order {
		out = append(out, image.Contact{Host: k.host, Port: k.port, Allowed: k.allowed, Count: counts[k]})
	}
	return out
}

// only is the one port of a set, or 0.
func only(ports map[int]bool) int {
	for p := range ports {
		if len(ports) == 1 {
			return p
		}
	}
	return 0
}

// askedFor is the host that a connection was meant for: the name that its
// address stands for, else the name it spoke of, else the address. What is said
// on a connection to a bare address does not make that another one. It is empty
// for the address that all refused names have, if nothing was said on it.
func askedFor(r egress.Record) string {
	switch {
	case r.Host != "":
		return r.Host
	case r.Reason == egress.ReasonNoMapping:
		return r.DestAddress
	case r.ClaimedHost != egress.InvalidHost:
		return r.ClaimedHost
	}
	return ""
}

// Usage implements image.Box.
func (b *box) Usage(ctx context.Context) (image.BoxUsage, error) {
	b.sample(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last, nil
}

// Tree implements image.Box.
func (b *box) Tree(ctx context.Context) (string, error) {
	if b.timer != nil {
		b.timer.Stop()
	}
	return b.boxes.Engine.Tree(ctx, b.id)
}

// Close implements image.Box.
func (b *box) Close(ctx context.Context) error {
	if b.timer != nil {
		b.timer.Stop()
	}
	ctx = context.WithoutCancel(ctx) // what was made is removed whatever the caller's patience
	if err := b.boxes.Engine.Destroy(ctx, b.id); err != nil {
		return fmt.Errorf("removing builder sandbox %s: %w", b.id, err)
	}
	return b.closeNetwork(ctx)
}

func (b *box) closeNetwork(ctx context.Context) error {
	if err := b.boxes.Network.Close(context.WithoutCancel(ctx), b.id); err != nil {
		return fmt.Errorf("removing the network of %s: %w", b.id, err)
	}
	return nil
}

// lockedWriter lets standard output and error be merged as they come.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	if l.w == nil {
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
