package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// sentryReserve is memory granted beyond Limits.MemoryBytes for gVisor itself.
const sentryReserve = 48 << 20

// tasksOfGVisor are processes and threads of the host granted beyond what a
// sandbox's own processes need: gVisor's kernel with the threads of Go's runtime,
// and its file helper. A sandbox that does nothing has about 30 of them.
const tasksOfGVisor = 256

// HostTasks is the most processes and threads of the host that a sandbox with
// this limit of processes inside may have. Each process or thread inside is two
// tasks of the host (1,000 programs that sleep are 2,016).
func HostTasks(processes int) int { return 2*processes + tasksOfGVisor }

// cpuPeriod is the period of the processor quota in microseconds.
const cpuPeriod = 100_000

// cgroups is where this engine's sandboxes are limited and found again. All
// processes of a sandbox are in its cgroup from their first instruction on, so
// the cgroup is also how the engine kills them: a process id alone may have
// been given to someone else. Works on cgroup v1, v2 and the hybrid.
type cgroups struct {
	memory, cpu, tasks string          // this engine's directory of the memory, cpu and pids controllers; all the same on v2
	v2                 map[string]bool // controller → whether it is in the unified hierarchy
}

// findCgroups looks up the mounted hierarchies and names this engine's
// directories in them; name is relative to the roots, so that sandboxes stay
// when a service manager ends the server's own cgroup.
func findCgroups(name string) (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, fmt.Errorf("finding cgroups: %w", err)
	}
	defer f.Close()
	roots, unified := map[string]string{}, ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, fstype := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 5 || len(fstype) < 3 {
			continue
		}
		switch fstype[0] {
		case "cgroup2":
			unified = mount[4]
		case "cgroup":
			for _, option := range strings.Split(fstype[2], ",") {
				if option == "memory" || option == "cpu" || option == "pids" {
					roots[option] = mount[4]
				}
			}
		}
	}
	cg := cgroups{v2: map[string]bool{}}
	for controller, dir := range map[string]*string{"memory": &cg.memory, "cpu": &cg.cpu, "pids": &cg.tasks} {
		if root := roots[controller]; root != "" {
			*dir = filepath.Join(root, name)
			continue
		}
		offered, _ := os.ReadFile(filepath.Join(unified, "cgroup.controllers"))
		if unified == "" || !slices.Contains(strings.Fields(string(offered)), controller) {
			return cgroups{}, fmt.Errorf("the host has no %q cgroup controller mounted", controller)
		}
		*dir, cg.v2[controller] = filepath.Join(unified, name), true
	}
	return cg, nil
}

func (cg cgroups) parents() []string {
	var dirs []string
	for _, dir := range []string{cg.memory, cg.cpu, cg.tasks} {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// procs lists the cgroup.procs files of a sandbox.
func (cg cgroups) procs(id string) []string {
	var paths []string
	for _, dir := range cg.parents() {
		paths = append(paths, filepath.Join(dir, id, "cgroup.procs"))
	}
	return paths
}

// create makes the cgroups of a sandbox with their limits.
func (cg cgroups) create(id string, limits sandbox.Limits) error {
	for _, parent := range cg.parents() {
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return fmt.Errorf("making cgroup: %w", err)
		}
		if cg.v2["memory"] && parent == cg.memory || cg.v2["cpu"] && parent == cg.cpu || cg.v2["pids"] && parent == cg.tasks {
			if err := cg.delegate(parent); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Join(parent, id), 0o755); err != nil {
			return fmt.Errorf("making cgroup: %w", err)
		}
	}
	quota := strconv.FormatInt(int64(math.Ceil(limits.CPUs*cpuPeriod)), 10)
	memory := strconv.FormatInt(limits.MemoryBytes+sentryReserve, 10)
	memoryDir, cpuDir := filepath.Join(cg.memory, id), filepath.Join(cg.cpu, id)
	err := write(filepath.Join(cg.tasks, id), "pids.max", strconv.Itoa(HostTasks(limits.Processes)))
	if cg.v2["memory"] {
		err = errors.Join(err, write(memoryDir, "memory.max", memory), write(memoryDir, "memory.oom.group", "1"),
			optional(write(memoryDir, "memory.swap.max", "0")))
	} else {
		err = errors.Join(err, write(memoryDir, "memory.limit_in_bytes", memory),
			optional(write(memoryDir, "memory.memsw.limit_in_bytes", memory)))
	}
	if cg.v2["cpu"] {
		err = errors.Join(err, write(cpuDir, "cpu.max", quota+" "+strconv.Itoa(cpuPeriod)))
	} else {
		err = errors.Join(err, write(cpuDir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)), write(cpuDir, "cpu.cfs_quota_us", quota))
	}
	if err != nil {
		return fmt.Errorf("limiting sandbox: %w", err)
	}
	return nil
}

// promisedTasks is how many processes and threads of the host this engine's
// sandboxes may have, without those that are pending.
func (cg cgroups) promisedTasks(pending map[string]claim) (int, error) {
	entries, err := os.ReadDir(cg.tasks)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("listing cgroups: %w", err)
	}
	sum := 0
	for _, entry := range entries {
		if _, ok := pending[entry.Name()]; ok || !entry.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(cg.tasks, entry.Name(), "pids.max"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue // removed meanwhile
		}
		if err != nil {
			return 0, fmt.Errorf("reading the limit of processes: %w", err)
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil { // "max": of a cgroup being made
			sum += n
		}
	}
	return sum, nil
}

// delegate turns the controllers on for the children of a v2 directory and of
// the root above it.
func (cg cgroups) delegate(dir string) error {
	for _, path := range []string{filepath.Dir(dir), dir} {
		for controller, unified := range cg.v2 {
			if !unified {
				continue
			}
			if err := write(path, "cgroup.subtree_control", "+"+controller); err != nil {
				return fmt.Errorf("enabling the %s controller: %w", controller, err)
			}
		}
	}
	return nil
}

func write(dir, name, value string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
}

// optional forgives a control file that this kernel does not have.
func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// kill ends every process of a sandbox and returns when none is left.
func (cg cgroups) kill(ctx context.Context, id string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := cg.pids(id)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("killing process %d of sandbox %s: %w", pid, id, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d processes of sandbox %s to end: %w", len(pids), id, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// pids lists the live processes of a sandbox in every hierarchy: a half-started
// one may have joined only the first.
func (cg cgroups) pids(id string) ([]int, error) {
	var pids []int
	for _, path := range cg.procs(id) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing processes: %w", err)
		}
		for _, field := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// remove removes the cgroups of a sandbox whose processes have ended. The
// kernel may take a moment to let go of the last one.
func (cg cgroups) remove(ctx context.Context, id string) error {
	for _, parent := range cg.parents() {
		dir := filepath.Join(parent, id)
		for {
			err := syscall.Rmdir(dir)
			if err == nil || errors.Is(err, syscall.ENOENT) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("removing cgroup %s: %w", dir, err)
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	return nil
}

// close removes this engine's directories if no sandbox is left in them.
func (cg cgroups) close() {
	for _, parent := range cg.parents() {
		_ = syscall.Rmdir(parent)
	}
}

// usage reports memory in use without what the kernel can take back at once,
// and how many processes the memory limit killed.
func (cg cgroups) usage(id string) (memory, oomKills int64, err error) {
	dir := filepath.Join(cg.memory, id)
	current, stat, cache, events := "memory.usage_in_bytes", "memory.stat", "total_inactive_file", "memory.oom_control"
	if cg.v2["memory"] {
		current, cache, events = "memory.current", "inactive_file", "memory.events"
	}
	data, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		return 0, 0, fmt.Errorf("reading memory use: %w", err)
	}
	memory, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("reading memory use: %w", err)
	}
	memory = max(0, memory-keyed(filepath.Join(dir, stat), cache))
	return memory, keyed(filepath.Join(dir, events), "oom_kill"), nil
}

// keyed reads one number of a file of "name number" lines; absent is 0.
func keyed(path, name string) int64 {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	return 0
}
