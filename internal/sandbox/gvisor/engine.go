// Package gvisor runs sandboxes with gVisor inside this process: it is
// [sandbox.Engine] and [sandbox.Files] on one Linux host.
//
// A sandbox is a directory below Config.Dir, a cgroup, two mounts (an ext4 disk
// of its own, and an overlay of the layers and that disk) and two processes
// (gVisor's kernel and its file helper), which this program becomes when gVisor
// executes it anew: see [MaybeRun]. None of these is bound to the life of the
// server. When the server dies, sandboxes run on, and an engine that opens the
// same directory lists them and can use them at once; what a server left half
// made is listed as stopped and waits for Destroy. A sandbox that is put aside
// keeps its directory and mounts and has neither cgroup nor processes. The engine keeps no truth in
// memory but what it can read again.
package gvisor

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/atoll-run/atoll/internal/durable"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// Config says where an engine keeps its sandboxes and what they may use.
type Config struct {
	// Dir holds all state. Required. Two engines with different directories
	// never touch each other's sandboxes.
	Dir string
	// RunDir holds control sockets; its path must be short (at most 28 bytes).
	// Empty means a directory below /run named after Dir.
	RunDir string
	// Logger receives what the engine has to say. Nil discards.
	Logger *slog.Logger
	// DefaultLimits apply where a Spec says zero. Zero here means 2 GiB of
	// memory, all processors of the host, 1024 processes, 10 GiB of disk.
	DefaultLimits sandbox.Limits
	// MinFreeBytes is the part of the host's disk that sandboxes leave free for
	// everything else (database, logs, package layers): Create answers
	// ErrCapacity, and disks do not grow any more. Zero means a twentieth of the
	// file system, at most 1 GiB; negative means nothing.
	MinFreeBytes int64
	// DiskOvercommit is how many times the host's free space without the reserve
	// may be promised to sandboxes: the sum of what their disks may still grow by
	// their limits. Zero means 1: each can use its limit to the full. With more,
	// sandboxes meet ENOSPC below their limits when all of them fill their disks.
	// Less than 1 is an error.
	DiskOvercommit float64
	// MaxTasks is how many processes and threads of the host all running sandboxes
	// may have by their limits together; beyond it Create answers ErrCapacity.
	// Zero means seven eighths of what the kernel allows (pid_max and threads-max),
	// or all but 4096 of that if it is more. Negative is an error.
	MaxTasks int
	// Descriptors are asked before a program is started, with the sandbox's id for
	// the holder; a program that finds none is refused with ErrTooMany. Nil means
	// that there are enough.
	Descriptors Descriptors
	// CgroupParent begins the name of the engine's cgroup. Empty means "atoll".
	CgroupParent string
	// Debug writes gVisor's log of each sandbox into its directory. It is big.
	Debug bool
}

// What Config.DefaultLimits are where they say zero.
const (
	DefaultProcesses = 1024            // processes and threads inside a sandbox
	DefaultDiskBytes = int64(10) << 30 // bytes that one sandbox may write
)

const defaultCgroupParent = "atoll"

// Engine is a [sandbox.Engine] and [sandbox.Files].
type Engine struct {
	config  Config
	log     *slog.Logger
	cgroups cgroups
	disks   disks
	guest   *os.File // the guest program; sandboxes execute this descriptor
	reaper  *reaper
	boot    string // id of the machine's present boot
	ledger  ledger
	unwatch func() // ends the watch over the disks' growth, and waits for it

	mu    sync.Mutex
	locks map[string]*idLock // sandbox id → who changes it; present while in use
	boxes map[string]*box    // sandbox id → running sandbox, as far as already used
}

var (
	_ sandbox.Checkpointer = (*Engine)(nil)
	_ sandbox.Files        = (*Engine)(nil)
)

// New opens the engine on its directory, which it makes if needed. It needs
// root. Sandboxes that are there already are left as they are, but for those that
// a killed engine was just putting aside or bringing back: that is finished or
// undone. One engine at a time may be open on a directory.
func New(config Config) (*Engine, error) {
	if config.Dir == "" {
		return nil, errors.New("opening sandbox engine: no directory given")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("opening sandbox engine: must be root to make mounts and namespaces")
	}
	if config.Descriptors == nil {
		config.Descriptors = plenty{}
	}
	if err := checkStatic(); err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	config.Dir = dir
	for _, sub := range []string{dir, filepath.Join(dir, "sandboxes"), filepath.Join(dir, "blank")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, fmt.Errorf("opening sandbox engine: %w", err)
		}
	}
	if config.Dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	if err := config.completeRoom(config.Dir); err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	name := nameOf(config.Dir)
	if config.RunDir == "" {
		config.RunDir = "/run/atoll-" + name
	}
	if len(config.RunDir) > 28 {
		return nil, fmt.Errorf("opening sandbox engine: run directory %q is longer than 28 bytes, too long for sockets", config.RunDir)
	}
	if err := os.MkdirAll(config.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.CgroupParent == "" {
		config.CgroupParent = defaultCgroupParent
	}
	config.DefaultLimits = withDefaults(config.DefaultLimits, sandbox.Limits{
		MemoryBytes: 2 << 30, CPUs: float64(runtime.NumCPU()), Processes: DefaultProcesses, DiskBytes: DefaultDiskBytes,
	})
	cg, err := findCgroups(config.CgroupParent + "-" + name)
	if err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	blank := filepath.Join(config.Dir, "blank")
	if err := errors.Join(durable.Sweep(config.Dir), durable.Sweep(blank)); err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	guest, err := openGuest(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening sandbox engine: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening sandbox engine: %w", err), guest.Close())
	}
	gvlog.SetTarget(discardLog) // gVisor's library would write to standard error
	e := &Engine{
		config: config, log: config.Logger, cgroups: cg, guest: guest, reaper: newReaper(), boot: strings.TrimSpace(string(boot)),
		disks: disks{dir: blank},
		locks: map[string]*idLock{}, boxes: map[string]*box{},
		ledger: ledger{pending: map[string]claim{}, bounded: map[string]bool{}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { e.watchGrowth(ctx) })
	e.unwatch = func() { cancel(); watch.Wait() }
	if err := e.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening sandbox engine: %w", err), e.Close())
	}
	return e, nil
}

// checkStatic refuses a program that needs a dynamic loader: gVisor executes it
// inside an empty root, where there is none, and fails there with "no such file".
func checkStatic() error {
	program, err := elf.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer program.Close()
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP {
			return errors.New("this binary is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// Close lets go of the engine; sandboxes go on. No method may run or follow.
func (e *Engine) Close() error {
	e.unwatch()
	e.reaper.close()
	specutils.UnmountNullNetNS(e.config.RunDir) // a namespace that sandboxes joined needs no name
	_ = os.Remove(filepath.Join(e.config.RunDir, specutils.NullNetNSFilename))
	_ = unix.Rmdir(e.config.RunDir) // both stay while sandboxes are in them
	e.cgroups.close()
	return e.guest.Close()
}

// nameOf is a short name for a directory, for what lives outside of it.
func nameOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:5])
}

func withDefaults(l, defaults sandbox.Limits) sandbox.Limits {
	if l.MemoryBytes == 0 {
		l.MemoryBytes = defaults.MemoryBytes
	}
	if l.CPUs == 0 {
		l.CPUs = defaults.CPUs
	}
	if l.Processes == 0 {
		l.Processes = defaults.Processes
	}
	if l.DiskBytes == 0 {
		l.DiskBytes = defaults.DiskBytes
	}
	return l
}

// idLock lets one goroutine at a time make or unmake a sandbox.
type idLock struct {
	turn  chan struct{} // holds one token
	users int           // guarded by Engine.mu
}

// lock waits for the right to make or unmake a sandbox.
func (e *Engine) lock(ctx context.Context, id string) (unlock func(), err error) {
	e.mu.Lock()
	l := e.locks[id]
	if l == nil {
		l = &idLock{turn: make(chan struct{}, 1)}
		e.locks[id] = l
	}
	l.users++
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(e.locks, id)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
