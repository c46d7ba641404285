package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// peer is another way to run echo on the same root filesystem.
type peer struct {
	name    string
	missing string // why it cannot be measured, or empty
	run     func() error
	up      func() error // starts a container that exec uses
	exec    func() error
	down    func()
}

func (b *bench) peers() []peer {
	// podman's defaults exceed the limits of some hosts, and crun does not work
	// on hybrid cgroups.
	podmanArgs := []string{"--runtime", "runc", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}
	return []peer{
		b.oci("runsc", b.runsc, "--root", filepath.Join(b.dir, "runsc-root"), "--network", "none", "--ignore-cgroups", "--overlay2", "none"),
		b.oci("runc", "runc", "--root", filepath.Join(b.dir, "runc-root")),
		b.podman(podmanArgs),
	}
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, tail(out))
	}
	return nil
}

// oci is a runtime with the command line of the OCI reference.
func (b *bench) oci(name, binary string, global ...string) peer {
	p := peer{name: name}
	if _, err := exec.LookPath(binary); err != nil {
		p.missing = "not installed"
		return p
	}
	with := func(args ...string) []string { return append(append([]string{}, global...), args...) }
	short, long := filepath.Join(b.dir, name+"-echo"), filepath.Join(b.dir, name+"-sleep")
	if err := b.bundle(short, "/bin/echo", "hi"); err != nil {
		p.missing = err.Error()
	}
	if err := b.bundle(long, "/bin/sleep", "3600"); err != nil {
		p.missing = err.Error()
	}
	p.run = func() error {
		return command(binary, with("run", "--bundle", short, fmt.Sprintf("b%d", counter.Add(1)))...)
	}
	id := fmt.Sprintf("up%d", counter.Add(1))
	p.up = func() error {
		// The container's own output must not hold a pipe of ours open.
		cmd := exec.Command(binary, with("run", "--detach", "--bundle", long, id)...)
		return cmd.Run()
	}
	p.exec = func() error { return command(binary, with("exec", id, "/bin/echo", "hi")...) }
	p.down = func() {
		_ = command(binary, with("kill", id, "KILL")...)
		_ = command(binary, with("delete", "--force", id)...)
	}
	return p
}

func (b *bench) podman(args []string) peer {
	p := peer{name: "podman"}
	if _, err := exec.LookPath("podman"); err != nil {
		p.missing = "not installed"
		return p
	}
	rootfs := b.shared
	p.run = func() error {
		return command("podman", append(append([]string{"run", "--rm"}, args...), "--rootfs", rootfs, "/bin/echo", "hi")...)
	}
	name := fmt.Sprintf("atoll-bench-%d", os.Getpid())
	p.up = func() error {
		return command("podman", append(append([]string{"run", "--detach", "--name", name}, args...), "--rootfs", rootfs, "/bin/sleep", "3600")...)
	}
	p.exec = func() error { return command("podman", "exec", name, "/bin/echo", "hi") }
	p.down = func() { _ = command("podman", "rm", "--force", "--time", "0", name) }
	return p
}

// mountShared gives the peers an overlay of the slim root filesystem, as each of
// our sandboxes has one of its own; theirs is made once, in their favour.
func (b *bench) mountShared() error {
	for _, d := range []string{"upper", "work", "shared"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			return err
		}
	}
	b.shared = filepath.Join(b.dir, "shared")
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", b.rootfs, b.dir, b.dir)
	return command("mount", "-t", "overlay", "overlay", "-o", opts, b.shared)
}

// bundle writes an OCI bundle on the shared root filesystem.
func (b *bench) bundle(dir string, args ...string) error {
	namespaces := []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}
	spec := object{
		"ociVersion": "1.0.0",
		"process": object{"args": args, "cwd": "/", "terminal": false, "user": object{"uid": 0, "gid": 0},
			"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"root":   object{"path": b.shared, "readonly": false},
		"mounts": []object{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux":  object{"namespaces": namespaces},
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644)
}
