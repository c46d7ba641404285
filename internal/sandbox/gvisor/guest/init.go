package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// tmpMark keeps gVisor from mounting a memory file system over an empty /tmp:
// the server makes it before the start, the first process removes it.
const tmpMark = "/tmp/.atoll-start"

// readyFD is where the first process says that it is set up: nothing when it
// worked, else the reason.
const readyFD = 3

// initLoop is the life of process 1: set the limits, then reap what is left to
// it. It never ends; signals from inside do not stop it.
func initLoop(args []string) {
	runtime.LockOSThread() // namespaces belong to threads; programs get the first thread's
	ready := os.NewFile(readyFD, "ready")
	if err := setUp(args); err != nil {
		_, _ = ready.WriteString(err.Error())
		os.Exit(1)
	}
	_, _ = ready.WriteString("ok")
	_ = ready.Close()
	ended := make(chan os.Signal, 1)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	signal.Notify(ended, syscall.SIGCHLD)
	debug.FreeOSMemory()
	debug.SetGCPercent(-1) // it allocates nothing from here on
	for range ended {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}

// setUp limits the sandbox from inside: gVisor's own kernel counts processes in
// a cgroup, and a cgroup namespace keeps the limit out of reach of what runs
// below. (gVisor's call to write the limit from outside fails on cgroup v2.)
// Afterwards this process has no privilege left.
func setUp(args []string) error {
	_ = os.Remove(tmpMark)
	if len(args) != 2 {
		return fmt.Errorf("want process and memory limit, have %q", args)
	}
	const mount, name = "/sys/fs/cgroup", "s"
	// nsdelegate is a setting of the whole hierarchy: it makes the limits of a
	// namespace's root unwritable from inside the namespace.
	if err := syscall.Mount("cgroup", mount, "cgroup2", 0, "nsdelegate"); err != nil {
		return fmt.Errorf("mounting cgroups: %w", err)
	}
	dir := filepath.Join(mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, set := range [][2]string{{"cgroup.procs", strconv.Itoa(os.Getpid())}, {"pids.max", args[0]}, {"memory.max", args[1]}} {
		if err := os.WriteFile(filepath.Join(dir, set[0]), []byte(set[1]), 0); err != nil {
			return err
		}
	}
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unsharing cgroups: %w", err)
	}
	if err := syscall.Unmount(mount, 0); err != nil {
		return fmt.Errorf("unmounting cgroups: %w", err)
	}
	flags := uintptr(syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC)
	if err := syscall.Mount("cgroup", mount, "cgroup2", flags, ""); err != nil {
		return fmt.Errorf("mounting cgroups: %w", err)
	}
	if err := settleProc(); err != nil {
		return err
	}
	return dropCapabilities()
}

// settleProc makes what programs look up below /proc/sys read as on Linux.
func settleProc() error {
	// A debugger may attach to a process of its own user.
	if err := os.WriteFile("/proc/sys/kernel/yama/ptrace_scope", []byte("0"), 0); err != nil {
		return fmt.Errorf("allowing debuggers: %w", err)
	}
	return completeSysFS()
}

// sysFS is what Linux has in /proc/sys/fs and gVisor has not. gVisor counts
// neither watches nor open files of the whole system; what limits them is memory.
var sysFS = map[string]string{
	"file-max":                   "9223372036854775807",
	"file-nr":                    "0\t0\t9223372036854775807",
	"inotify/max_queued_events":  "16384",
	"inotify/max_user_instances": "8192",
	"inotify/max_user_watches":   "1048576",
	"aio-max-nr":                 "65536",
	"protected_hardlinks":        "0",
	"protected_symlinks":         "0",
	"suid_dumpable":              "0",
}

// completeSysFS lays a read-only memory file system with gVisor's own files and
// the missing ones over /proc/sys/fs.
func completeSysFS() error {
	const dir = "/proc/sys/fs"
	all := maps.Clone(sysFS)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		value, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		all[entry.Name()] = strings.TrimSuffix(string(value), "\n")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "mode=0555,size=1m"); err != nil {
		return fmt.Errorf("completing %s: %w", dir, err)
	}
	for name, value := range all {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o555), os.WriteFile(path, []byte(value+"\n"), 0o444)); err != nil {
			return fmt.Errorf("completing %s: %w", dir, err)
		}
	}
	flags := uintptr(syscall.MS_REMOUNT | syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC)
	if err := syscall.Mount("", dir, "", flags, ""); err != nil {
		return fmt.Errorf("completing %s: %w", dir, err)
	}
	return nil
}

// dropCapabilities gives up all capabilities in all threads.
func dropCapabilities() error {
	head := struct {
		version uint32
		pid     int32
	}{version: 0x20080522}
	var none [2]struct{ effective, permitted, inheritable uint32 }
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0)
	if errno != 0 {
		return fmt.Errorf("dropping capabilities: %w", errno)
	}
	return nil
}

// quiesce kills every other process and writes all files back to the host, so
// that the private directory is complete.
func quiesce() {
	for range 3 { // a process may have forked while the first round ran
		_ = syscall.Kill(-1, syscall.SIGKILL)
	}
	syscall.Sync()
}
