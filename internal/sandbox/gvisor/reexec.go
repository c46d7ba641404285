package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/cli/maincli"
)

// init keeps the main goroutine on the main thread, which is possible from an
// init only, so that nothing else ever runs there: gVisor's library enters a
// sandbox's network namespace on whatever thread it is on, and meanwhile another
// start takes the main thread's namespace (/proc/self/ns) for that of the process
// and gives its own thread back into it. The server's connections would then be
// made inside a sandbox's network.
func init() {
	if !isHelper(os.Args) {
		runtime.LockOSThread()
	}
}

// MaybeRun hands the process over to gVisor, and never returns, when gVisor
// or the engine started it as one of its helpers; otherwise it does nothing. Call it first in
// main, and first in TestMain of every test that starts sandboxes.
//
// gVisor starts helpers by executing this very program: "runsc-sandbox" and
// "runsc-gofer" by argv[0], and from the sandbox's boot "/proc/self/exe umount
// --sync-fd=N PATH". None of these is a command line that a person types.
//
// The engine starts one by itself, under adopterName: it reads what a sandbox
// saved, without the server's privileges.
func MaybeRun() {
	if isAdopter(os.Args) {
		if err := beAdopter(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if !isHelper(os.Args) {
		return
	}
	if os.Args[0] != "/proc/self/exe" {
		closeStrays(os.Args)
	}
	if dir := bundleDir(os.Args); dir != "" {
		if err := prepareLaunch(dir, os.Args[0] == "runsc-sandbox"); err != nil {
			_ = os.WriteFile(filepath.Join(dir, launchErrorFile), []byte(err.Error()), 0o600)
			os.Exit(1)
		}
	}
	maincli.Main()
	os.Exit(1) // Main exits by itself
}

// isHelper recognises the command lines that gVisor gives its helpers.
func isHelper(args []string) bool {
	switch {
	case len(args) < 2:
		return false
	case args[0] == "runsc-sandbox", args[0] == "runsc-gofer":
		return true
	}
	return args[0] == "/proc/self/exe" && args[1] == "umount" && len(args) > 2 && strings.HasPrefix(args[2], "--sync-fd=")
}

// closeStrays closes the descriptors that this process inherited beyond those
// that its command line names. gVisor's library makes its sockets without
// close-on-exec, being written for a program that starts one sandbox: two that
// are started at the same moment would hold each other's control sockets, and
// one of them would seem alive after its death. What this process's own runtime
// has opened already is close-on-exec and stays.
func closeStrays(args []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // without /proc nothing of the rest works either, and says so
	}
	last := lastDonated(args)
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= last {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}

// lastDonated is the highest descriptor that a helper's command line names, in
// flags like --io-fds=4 and --pass-fd=14:3. Donated ones are numbered from 3 on
// without gaps.
func lastDonated(args []string) int {
	last := 2
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || !strings.HasSuffix(name, "-fd") && !strings.HasSuffix(name, "-fds") {
			continue
		}
		for number := range strings.SplitSeq(value, ",") {
			number, _, _ = strings.Cut(number, ":")
			if fd, err := strconv.Atoi(number); err == nil {
				last = max(last, fd)
			}
		}
	}
	return last
}

// launch is what a starting gVisor process does to itself before it runs: its
// parent cannot do it without moving the whole server (cgroup v1), or has no
// parameter for it. It lies in the bundle directory as launch.json.
type launch struct {
	CgroupProcs []string // cgroup.procs files to join
	MemoryBytes int64    // memory the sandbox sees
	CPUs        int      // processors the sandbox sees
}

const (
	launchFile      = "launch.json"
	launchErrorFile = "launch.err"
)

func bundleDir(args []string) string {
	for i, arg := range args {
		if dir, ok := strings.CutPrefix(arg, "--bundle="); ok {
			return dir
		}
		if arg == "--bundle" && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// prepareLaunch joins the cgroups, lets go of the server's environment and of
// its standard input and output, and tells the sandbox its own memory and
// processors instead of the host's. The process is still single-minded here:
// whatever it starts or allocates later counts for the sandbox.
func prepareLaunch(dir string, isSandbox bool) error {
	data, err := os.ReadFile(filepath.Join(dir, launchFile))
	if err != nil {
		return err
	}
	var l launch
	if err := json.Unmarshal(data, &l); err != nil {
		return fmt.Errorf("reading launch file: %w", err)
	}
	for _, path := range l.CgroupProcs {
		if err := os.WriteFile(path, []byte("0"), 0); err != nil {
			return fmt.Errorf("joining cgroup: %w", err)
		}
	}
	if !isSandbox {
		wipeEnvironment()
		return nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/null: %w", err)
	}
	defer unix.Close(null)
	for i := 0; i < len(os.Args); i++ {
		if os.Args[i] == "--total-memory" && i+1 < len(os.Args) && l.MemoryBytes > 0 {
			os.Args[i+1] = strconv.FormatInt(l.MemoryBytes, 10)
		}
		number, ok := strings.CutPrefix(os.Args[i], "--stdio-fds=")
		if !ok {
			continue
		}
		fd, err := strconv.Atoi(number)
		if err != nil || fd < 3 {
			return fmt.Errorf("unexpected argument %q", os.Args[i])
		}
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fmt.Errorf("replacing standard descriptors: %w", err)
		}
	}
	if l.CPUs > 0 {
		// Flags come before the container's name, the last argument.
		last := len(os.Args) - 1
		os.Args = append(os.Args[:last:last], "--cpu-num="+strconv.Itoa(l.CPUs), os.Args[last])
	}
	return nil
}

// wipeEnvironment removes the server's environment, which may hold its keys,
// from this process: the variables and the kernel's copy in /proc/self/environ.
func wipeEnvironment() {
	os.Clearenv()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	_, rest, ok := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 49 {
		return
	}
	start, err1 := strconv.ParseInt(fields[47], 10, 64) // env_start is field 50, rest begins at 3
	end, err2 := strconv.ParseInt(fields[48], 10, 64)
	if err1 != nil || err2 != nil || end <= start || end-start > 4<<20 {
		return
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer mem.Close()
	_, _ = mem.WriteAt(make([]byte, end-start), start)
}
