package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// minFreeMemory is what the host must have available for another sandbox.
const minFreeMemory = 128 << 20

// maxTaskReserve bounds how many processes and threads of the host sandboxes
// leave to everything else where Config.MaxTasks says nothing: an eighth of what
// the kernel allows, at most this.
const maxTaskReserve = 4096

// ledger knows what the host has promised to sandboxes. What exists is read from
// the disk images and the cgroups, so that it holds after a restart too; only
// what is being made is kept here.
type ledger struct {
	// mu makes looking at the host and promising a part of it one step. It
	// guards both maps, and the growth limits of all disks.
	mu      sync.Mutex
	pending map[string]claim // sandbox id → what is promised to a sandbox in the making
	bounded map[string]bool  // sandbox id → the growth of its disk is limited: see growth.go
}

// claim is what a sandbox may come to use of the host.
type claim struct {
	disk  int64 // size of its disk in bytes; 0 for one that has its disk already
	tasks int   // processes and threads of the host
}

// image is the disk of one sandbox as the host sees it.
type image struct {
	id        string
	size      int64 // bytes it may come to take
	allocated int64 // bytes it takes
}

// unused is how much the image may still grow.
func (i image) unused() int64 { return max(0, i.size-i.allocated) }

// Room is what the host has for sandboxes, at one moment.
type Room struct {
	// DiskFree is the free space of the file system of the engine's directory, in
	// bytes, and DiskReserve the part of it that sandboxes leave to everything else.
	DiskFree, DiskReserve int64
	// DiskCommitted is how many bytes the disks of all sandboxes, hibernated
	// ones and builders included, may still grow by their limits.
	DiskCommitted int64
	// DiskPromisable is how many bytes DiskCommitted may reach before Create
	// answers ErrCapacity: free space without the reserve, times the overcommit factor.
	DiskPromisable int64
	// TasksCommitted is how many processes and threads of the host all running
	// sandboxes may have by their limits; TasksPromisable is how many it may reach.
	TasksCommitted, TasksPromisable int
}

// completeRoom checks what the configuration says of the host's room, and fills
// in the defaults for the file system of dir.
func (c *Config) completeRoom(dir string) error {
	if c.MinFreeBytes == 0 {
		var host unix.Statfs_t
		if err := unix.Statfs(dir, &host); err != nil {
			return fmt.Errorf("asking for the size of the disk: %w", err)
		}
		c.MinFreeBytes = min(int64(host.Blocks)*host.Bsize/20, 1<<30)
	}
	if c.DiskOvercommit == 0 {
		c.DiskOvercommit = 1
	}
	if !(c.DiskOvercommit >= 1) { // not a number is none either
		return fmt.Errorf("a disk overcommit factor of %v is less than 1", c.DiskOvercommit)
	}
	if c.MaxTasks < 0 {
		return fmt.Errorf("%d processes of the host are less than none", c.MaxTasks)
	}
	return nil
}

// Survey tells what the host has left for the sandboxes of an engine with this
// configuration, which may be open in another process or not there yet. It
// changes nothing.
func Survey(config Config) (Room, error) {
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return Room{}, fmt.Errorf("surveying the host: %w", err)
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if config.CgroupParent == "" {
		config.CgroupParent = defaultCgroupParent
	}
	e := Engine{config: config}
	if e.cgroups, err = findCgroups(config.CgroupParent + "-" + nameOf(dir)); err != nil {
		return Room{}, fmt.Errorf("surveying the host: %w", err)
	}
	for !exists(dir) && dir != "/" { // its parent is on the same file system
		dir = filepath.Dir(dir)
	}
	e.config.Dir = dir
	if err := e.config.completeRoom(dir); err != nil {
		return Room{}, fmt.Errorf("surveying the host: %w", err)
	}
	return e.Room()
}

// Room tells what the host has left for sandboxes.
func (e *Engine) Room() (Room, error) {
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	return e.room()
}

// room is Room. The caller holds ledger.mu.
func (e *Engine) room() (Room, error) {
	free, err := e.diskFree()
	if err != nil {
		return Room{}, err
	}
	r := Room{DiskFree: free, DiskReserve: max(0, e.config.MinFreeBytes)}
	r.DiskPromisable = int64(float64(max(0, free-r.DiskReserve)) * e.config.DiskOvercommit)
	images, err := e.images()
	if err != nil {
		return Room{}, err
	}
	for _, image := range images {
		if _, ok := e.ledger.pending[image.id]; !ok {
			r.DiskCommitted += image.unused()
		}
	}
	if r.TasksCommitted, err = e.cgroups.promisedTasks(e.ledger.pending); err != nil {
		return Room{}, err
	}
	for _, c := range e.ledger.pending {
		r.DiskCommitted += c.disk
		r.TasksCommitted += c.tasks
	}
	r.TasksPromisable = e.config.MaxTasks
	if r.TasksPromisable == 0 {
		limit := taskLimit()
		r.TasksPromisable = limit - min(limit/8, maxTaskReserve)
	}
	return r, nil
}

// diskFree is the free space of the engine's file system in bytes.
func (e *Engine) diskFree() (int64, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(e.config.Dir, &disk); err != nil {
		return 0, fmt.Errorf("asking for free space: %w", err)
	}
	return int64(disk.Bavail) * disk.Bsize, nil
}

// images lists the disks of all sandboxes.
func (e *Engine) images() ([]image, error) {
	entries, err := os.ReadDir(filepath.Join(e.config.Dir, "sandboxes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing disks: %w", err)
	}
	var images []image
	for _, entry := range entries {
		var st unix.Stat_t
		err := unix.Stat(e.place(entry.Name()).image(), &st)
		if errors.Is(err, fs.ErrNotExist) {
			continue // destroyed meanwhile, or not made yet
		}
		if err != nil {
			return nil, fmt.Errorf("listing disks: %w", err)
		}
		images = append(images, image{id: entry.Name(), size: st.Size, allocated: st.Blocks * 512})
	}
	return images, nil
}

// taskLimit is how many processes and threads this host can have.
func taskLimit() int {
	limit := 1 << 22 // the most that Linux has on 64 bits
	for _, name := range []string{"pid_max", "threads-max"} {
		data, _ := os.ReadFile("/proc/sys/kernel/" + name)
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			limit = min(limit, n)
		}
	}
	return limit
}

// admit promises a part of the host to a sandbox, or answers ErrCapacity. The
// caller calls settled once the sandbox has its disk and cgroups, or is undone.
func (e *Engine) admit(ctx context.Context, id string, c claim) (settled func(), err error) {
	if err := memoryRoom(); err != nil {
		return nil, err
	}
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	r, err := e.room()
	if err != nil {
		return nil, err
	}
	if n := r.TasksCommitted + c.tasks; n > r.TasksPromisable {
		return nil, sandbox.Shortage("processes", "%d of the %d processes of this machine are promised to sandboxes, and this one may have %d: raise kernel.pid_max (or kernel.threads-max, or host.processes), or lower limits.processes",
			r.TasksCommitted, r.TasksPromisable, c.tasks)
	}
	if c.disk > 0 {
		if err := e.admitDisk(ctx, r, c.disk); err != nil {
			return nil, err
		}
	}
	e.ledger.pending[id] = c
	return func() {
		e.ledger.mu.Lock()
		delete(e.ledger.pending, id)
		e.ledger.mu.Unlock()
	}, nil
}

// admitDisk refuses a disk that the host cannot promise. The caller holds
// ledger.mu.
func (e *Engine) admitDisk(ctx context.Context, r Room, size int64) error {
	if r.DiskFree < r.DiskReserve || r.DiskCommitted+size > r.DiskPromisable {
		return sandbox.Shortage("disk", "%d MiB are free, of which %d are kept back; sandboxes may still write %d, and this one %d: free some space, lower limits.disk, or raise host.disk_overcommit",
			r.DiskFree>>20, r.DiskReserve>>20, r.DiskCommitted>>20, size>>20)
	}
	if r.DiskCommitted+size <= r.DiskFree-r.DiskReserve {
		return nil
	}
	// More is promised than there is: what is written already and not on the
	// host's disk yet, and the new disk's own tables, must fit in any case.
	left, err := e.balance(ctx)
	if err != nil {
		return err
	}
	if own := size/16 + 1<<20; own > left {
		return sandbox.Shortage("disk", "%d MiB are left for what sandboxes may write, and the tables of this one's disk need %d", left>>20, own>>20)
	}
	return nil
}

// memoryRoom answers ErrCapacity when the host has no memory for a sandbox.
func memoryRoom() error {
	data, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[0] == "MemAvailable:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil && kib<<10 < minFreeMemory {
				return sandbox.Shortage("memory", "%d MiB of memory are left", kib>>10)
			}
		}
	}
	return nil
}
