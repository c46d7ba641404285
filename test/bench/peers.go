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
	podmanArgs := []string{"--runtime", "runc", "--network", "none", "--cgroups", "disabled", "--ulimit", "host"}
	return []peer{
		b.oci("runsc", b.runsc, "--root", filepath.Join(b.dir, "runsc-root"), "--network", "none", "--ignore-cgroups", "--overlay2", "root:memory"),
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
	rootfs := b.rootfs + ":O" // its own overlay over the same directory
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

// bundle writes an OCI bundle on the slim root filesystem, read-only.
func (b *bench) bundle(dir string, args ...string) error {
	namespaces := []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}}
	spec := object{
		"ociVersion": "1.0.0",
		"process": object{"args": args, "cwd": "/", "terminal": false, "user": object{"uid": 0, "gid": 0},
			"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"root":   object{"path": b.rootfs, "readonly": true},
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
