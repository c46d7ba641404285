package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	gvsandbox "gvisor.dev/gvisor/runsc/sandbox"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// containerID is the name of the one container in every gVisor sandbox. It is
// short because it is part of the control socket's path; the sandbox's own id
// is in the directory.
const containerID = "s"

// meta is what is kept of a Spec, as meta.json in the sandbox's directory.
type meta struct {
	Labels    map[string]string `json:"labels,omitempty"`
	CreatedAt time.Time         `json:"created_at"`
	Env       []string          `json:"env,omitempty"`
	Dir       string            `json:"dir"`
	Network   bool              `json:"network,omitempty"`
	Limits    sandbox.Limits    `json:"limits,omitzero"`
	Boot      string            `json:"boot,omitempty"` // the boot of the machine that it lives in
}

// box is a running sandbox that this engine has opened.
type box struct {
	meta    meta
	conf    *config.Config
	sandbox *gvsandbox.Sandbox
	users   users
	held    heldOutputs
}

// place is where things of a sandbox are.
type place struct{ dir, run string }

func (e *Engine) place(id string) place {
	return place{dir: filepath.Join(e.config.Dir, "sandboxes", id), run: filepath.Join(e.config.RunDir, id)}
}

func (p place) meta() string     { return filepath.Join(p.dir, "meta.json") }
func (p place) ready() string    { return filepath.Join(p.dir, "ready") } // exists once Create succeeded
func (p place) image() string    { return filepath.Join(p.dir, "disk.ext4") }
func (p place) disk() string     { return filepath.Join(p.dir, "disk") }
func (p place) upper() string    { return filepath.Join(p.dir, "disk", "upper") }
func (p place) work() string     { return filepath.Join(p.dir, "disk", "work") }
func (p place) spec() string     { return filepath.Join(p.dir, "bundle", "config.json") }
func (p place) root() string     { return filepath.Join(p.dir, "root") }
func (p place) bundle() string   { return filepath.Join(p.dir, "bundle") }
func (p place) panicLog() string { return filepath.Join(p.dir, "panic.log") }
func (p place) socket() string   { return filepath.Join(p.run, "runsc-"+containerID+".sock") }

// alive reports whether the sandbox accepts commands: it was made completely, is
// not put aside or just being started anew, and its kernel listens. No process
// id is involved, so none can be mistaken.
func (p place) alive() bool {
	return exists(p.ready()) && !p.hibernated() && p.step() != stepReviving && p.listens()
}

// listens reports whether the kernel of a sandbox is there, whatever it does.
func (p place) listens() bool {
	conn, err := net.DialTimeout("unix", p.socket(), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func (p place) readMeta() (meta, error) {
	var m meta
	data, err := os.ReadFile(p.meta())
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// checkID refuses what is no sandbox id, before it becomes part of a path.
func checkID(id string) error {
	if len(id) < 1 || len(id) > 64 || strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Errorf("%q is not a sandbox id", id)
	}
	for _, c := range id {
		if c != '_' && c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return fmt.Errorf("%q is not a sandbox id", id)
		}
	}
	return nil
}

// Inspect describes one sandbox.
func (e *Engine) Inspect(_ context.Context, id string) (sandbox.Info, error) {
	if checkID(id) != nil {
		return sandbox.Info{}, sandbox.ErrNotFound
	}
	return e.inspect(id)
}

func (e *Engine) inspect(id string) (sandbox.Info, error) {
	p := e.place(id)
	dir, err := os.Stat(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return sandbox.Info{}, sandbox.ErrNotFound
	}
	if err != nil {
		return sandbox.Info{}, fmt.Errorf("inspecting sandbox: %w", err)
	}
	info := sandbox.Info{ID: id, State: sandbox.StateStopped, CreatedAt: dir.ModTime().UTC()}
	if m, err := p.readMeta(); err == nil { // absent in what a killed server left half made
		info.Labels, info.CreatedAt = m.Labels, m.CreatedAt
	}
	switch {
	case p.alive():
		info.State, info.Files = sandbox.StateRunning, true
	case p.hibernated() && e.hasFiles(p):
		info.State, info.Files = sandbox.StateHibernated, true
	default:
		info.Files = e.hasFiles(p)
	}
	return info, nil
}

// List describes every sandbox below the engine's directory.
func (e *Engine) List(ctx context.Context) ([]sandbox.Info, error) {
	entries, err := os.ReadDir(filepath.Join(e.config.Dir, "sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("listing sandboxes: %w", err)
	}
	var infos []sandbox.Info
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		info, err := e.inspect(entry.Name())
		if errors.Is(err, sandbox.ErrNotFound) {
			continue // destroyed meanwhile
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// open returns the running sandbox of this id, from an earlier server too.
func (e *Engine) open(id string) (*box, error) {
	e.mu.Lock()
	b := e.boxes[id]
	e.mu.Unlock()
	if b != nil {
		return b, nil
	}
	if checkID(id) != nil {
		return nil, sandbox.ErrNotFound
	}
	p := e.place(id)
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.ErrNotFound
	}
	if !p.alive() {
		return nil, p.whyNot()
	}
	m, err := p.readMeta()
	if err != nil {
		return nil, fmt.Errorf("opening sandbox: %w", err)
	}
	conf, err := e.gvisorConfig(p, m.Network)
	if err != nil {
		return nil, err
	}
	sb, err := p.load()
	if err != nil {
		return nil, err
	}
	return e.keepOpened(id, p, &box{meta: m, conf: conf, sandbox: sb})
}

// load reads what gVisor keeps of a sandbox.
func (p place) load() (*gvsandbox.Sandbox, error) {
	full := container.FullID{SandboxID: containerID, ContainerID: containerID}
	c, err := container.Load(p.run, full, container.LoadOpts{Exact: true, SkipCheck: true})
	if err != nil {
		return nil, fmt.Errorf("opening sandbox: %w", err)
	}
	if c.Sandbox == nil {
		return nil, sandbox.ErrNotRunning
	}
	return c.Sandbox, nil
}

// keepOpened keeps a box unless another was quicker, or the sandbox was put
// aside meanwhile: whoever does that makes it so before he forgets the box.
func (e *Engine) keepOpened(id string, p place, b *box) (*box, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if other := e.boxes[id]; other != nil {
		return other, nil
	}
	if p.hibernated() {
		return nil, sandbox.ErrHibernated
	}
	e.boxes[id] = b
	return b, nil
}

func (e *Engine) keep(id string, b *box) {
	e.mu.Lock()
	e.boxes[id] = b
	e.mu.Unlock()
}

func (e *Engine) forget(id string) {
	e.mu.Lock()
	delete(e.boxes, id)
	e.mu.Unlock()
}

// gone tells, after a call into the sandbox failed, whether that is because the
// sandbox is no more; it returns nil if it lives.
func (e *Engine) gone(id string) error {
	p := e.place(id)
	if p.alive() {
		return nil
	}
	e.forget(id)
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return sandbox.ErrNotFound
	}
	return p.whyNot()
}

// dyingTime is how long a sandbox that broke off a call may take to be gone.
const dyingTime = 5 * time.Second

// goneSoon is gone for a sandbox whose call ended with err. When it broke off
// in the middle, the sandbox is dying, but its socket may be there for moments.
func (e *Engine) goneSoon(id string, err error) error {
	broken := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || strings.HasSuffix(err.Error(), "EOF") ||
		strings.Contains(err.Error(), unix.ECONNRESET.Error()) || strings.Contains(err.Error(), unix.EPIPE.Error())
	for end := time.Now().Add(dyingTime); ; time.Sleep(5 * time.Millisecond) {
		if gone := e.gone(id); gone != nil || !broken || time.Now().After(end) {
			return gone
		}
	}
}

// Usage reports what a sandbox uses. Of a stopped one, disk and kills.
func (e *Engine) Usage(_ context.Context, id string) (sandbox.Usage, error) {
	if checkID(id) != nil {
		return sandbox.Usage{}, sandbox.ErrNotFound
	}
	p := e.place(id)
	if _, err := os.Stat(p.dir); errors.Is(err, fs.ErrNotExist) {
		return sandbox.Usage{}, sandbox.ErrNotFound
	}
	var usage sandbox.Usage
	var err error
	if usage.MemoryBytes, usage.OOMKills, err = e.cgroups.usage(id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sandbox.Usage{}, err
	}
	var disk unix.Statfs_t
	if unix.Statfs(p.disk(), &disk) == nil && disk.Type == unix.EXT4_SUPER_MAGIC {
		usage.DiskBytes = int64(disk.Blocks-disk.Bfree) * disk.Bsize
	}
	b, err := e.open(id)
	if err != nil {
		return usage, nil //nolint:nilerr // a stopped or hibernated sandbox has no processes
	}
	count, err := b.sandbox.CgroupsReadControlFile(control.CgroupControlFile{Controller: "pids", Path: "/" + containerID, Name: "pids.current"})
	if err != nil {
		if e.gone(id) != nil {
			return usage, nil
		}
		return usage, fmt.Errorf("counting processes: %w", err)
	}
	usage.Processes, err = strconv.Atoi(strings.TrimSpace(count))
	if err != nil {
		return usage, fmt.Errorf("counting processes: %w", err)
	}
	return usage, nil
}
