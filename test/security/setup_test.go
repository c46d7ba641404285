package security

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/egress"
)

// A fault is a call of the kernel that fails from here on, in the whole process,
// as it does where the kernel lacks what is asked for or has no memory for it.
type fault struct {
	name  string
	calls []faultyCall
	caps  bool // without CAP_NET_ADMIN
	taken bool // the name is taken
	step  string
}

type faultyCall struct {
	number uintptr
	args   map[int]uint32 // must be these
	errno  syscall.Errno
}

// faults are the steps of making a network, in turn.
func faults() []fault {
	const route, netfilter = unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER
	socket := func(args map[int]uint32, errno syscall.Errno) []faultyCall {
		return []faultyCall{{unix.SYS_SOCKET, args, errno}}
	}
	return []fault{
		{name: "taken", taken: true, step: egress.ErrExists.Error()},
		{name: "namespaces", calls: []faultyCall{{unix.SYS_UNSHARE, nil, unix.ENOSPC}}, step: "making runtime namespace: no space left on device"},
		{name: "netlink", calls: socket(map[int]uint32{0: unix.AF_NETLINK, 2: route}, unix.ENOBUFS), step: "opening netlink in gateway namespace"},
		{name: "capability", caps: true, step: "setting up gateway namespace: write /proc/sys/net/ipv4/ip_forward: operation not permitted"},
		{name: "veth", calls: []faultyCall{{unix.SYS_SENDTO, nil, unix.EOPNOTSUPP}}, step: "making veth pair: operation not supported"},
		{name: "nf_tables", calls: socket(map[int]uint32{0: unix.AF_NETLINK, 2: netfilter}, unix.EPROTONOSUPPORT), step: "installing nf_tables rules: socket: protocol not supported"},
		{name: "entering", calls: []faultyCall{{unix.SYS_SETNS, nil, unix.ENOMEM}}, step: "entering network namespace: cannot allocate memory"},
		{name: "listening", calls: []faultyCall{{unix.SYS_LISTEN, nil, unix.ENOMEM}}, step: "listening in gateway namespace"},
		{name: "raw socket", calls: socket(map[int]uint32{0: unix.AF_INET, 2: unix.IPPROTO_RAW}, unix.ENOMEM), step: "listening in gateway namespace"},
		{name: "mount", calls: []faultyCall{{unix.SYS_MOUNT, nil, unix.ENOMEM}}, step: "keeping network namespace"},
		{name: "disk", calls: []faultyCall{{unix.SYS_RENAMEAT, nil, unix.ENOSPC}, {unix.SYS_RENAMEAT2, nil, unix.ENOSPC}}, step: "writing network policy"},
	}
}

// outcome is what came of opening a network under a fault.
type outcome struct {
	Error  string
	Opened bool // it worked, before the fault
	Left   []string
}

// beFaulty opens a network while something does not work, and prints what came of
// it. Before that it opens and closes one, so that what a process makes once is
// not taken for a leak.
func beFaulty(dir, name string) {
	var out outcome
	defer func() { _ = json.NewEncoder(os.Stdout).Encode(out) }()
	g, err := egress.New(egress.Config{Dir: dir})
	if err != nil {
		out.Error = "starting: " + err.Error()
		return
	}
	policy, err := egress.Compile(limited("ok.example.com"))
	if err != nil {
		out.Error = "compiling: " + err.Error()
		return
	}
	open := func(id string) error {
		_, err := g.Open(context.Background(), id, meta(id), policy)
		return err
	}
	if err := errors.Join(open("first"), g.Close(context.Background(), "first")); err != nil {
		out.Error = "without a fault: " + err.Error()
		return
	}
	out.Opened = true
	f := faults()[slices.IndexFunc(faults(), func(f fault) bool { return f.name == name })]
	if f.taken {
		if err := open("second"); err != nil {
			out.Error = err.Error()
			return
		}
	}
	before := holdings(dir)
	if err := f.happen(); err != nil {
		out.Error = "making the fault: " + err.Error()
		return
	}
	if err := open("second"); err != nil {
		out.Error = err.Error()
	}
	after := holdings(dir)
	for _, what := range after {
		if i := slices.Index(before, what); i >= 0 {
			before = slices.Delete(before, i, i+1)
			continue
		}
		out.Left = append(out.Left, what)
	}
}

// holdings lists what a network takes of this process and this machine.
func holdings(dir string) (out []string) {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		kind, _, _ := strings.Cut(to, ":")
		if kind == "net" || kind == "socket" {
			out = append(out, kind)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			out = append(out, "mount "+strings.Fields(line)[4])
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "networks", "*"))
	links, _ := filepath.Glob("/sys/class/net/*")
	return append(append(out, files...), links...)
}

// happen makes the fault, for all threads of the process and for good.
func (f fault) happen() error {
	if f.caps {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			return err
		}
		sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		sets[0].Permitted &^= 1 << unix.CAP_NET_ADMIN
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets)), 0)
		if errno != 0 {
			return errno
		}
	}
	for _, c := range f.calls {
		if err := c.refuse(); err != nil {
			return err
		}
	}
	return nil
}

// refuse installs a filter under which the call fails.
func (c faultyCall) refuse() error {
	const load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	want := [][2]uint32{{0, uint32(c.number)}} // offset in struct seccomp_data, value
	for i, v := range c.args {
		want = append(want, [2]uint32{uint32(16 + 8*i), v})
	}
	var program []unix.SockFilter
	for i, w := range want {
		left := len(want) - i - 1
		program = append(program, unix.SockFilter{Code: load, K: w[0]}, unix.SockFilter{Code: equal, Jf: uint8(2*left + 1), K: w[1]})
	}
	program = append(program, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(c.errno)}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// E214: each step of making a network fails in turn, in a process of its own.
func TestSetUpFails(t *testing.T) {
	t.Parallel()
	needHost(t)
	unit(t, "E214", func(t *testing.T) {
		for _, f := range faults() {
			dir := t.TempDir()
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), serverVariable+"="+dir, serverVariable+"_FAULT="+f.name)
			cmd.Stderr = os.Stderr
			said, err := cmd.Output()
			var out outcome
			if err := errors.Join(err, json.Unmarshal(said, &out)); err != nil {
				t.Errorf("%s: %v: %s", f.name, err, said)
			}
			if !out.Opened || !strings.Contains(out.Error, f.step) {
				t.Errorf("%s: %q, want %q", f.name, out.Error, f.step)
			}
			if len(out.Left) > 0 {
				t.Errorf("%s: left behind: %q", f.name, out.Left)
			}
			if err := leaveDirectory(dir); err != nil {
				t.Error(err)
			}
		}
	})
}

// leaveDirectory takes a dead server's mounts away.
func leaveDirectory(dir string) error {
	g, err := egress.New(egress.Config{Dir: dir})
	if err != nil {
		return fmt.Errorf("taking over %s: %w", dir, err)
	}
	ids, err := g.List(context.Background())
	for _, id := range ids {
		err = errors.Join(err, g.Close(context.Background(), id))
	}
	return errors.Join(err, g.Shutdown(context.Background()))
}
