package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// throwaway has run do a script on an overlay of the base that is removed
// afterwards, with the host's resolver in it, and times run alone. dir is for
// what run needs beside the root.
func (b *bench) throwaway(base, script string, run func(dir, root, base, script string) (time.Duration, error)) (_ time.Duration, err error) {
	dir, err := os.MkdirTemp(b.dir, "native-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return 0, err
		}
	}
	root := filepath.Join(dir, "merged")
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := command("mount", "-t", "overlay", "overlay", "-o", opts, root); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, command("umount", "-R", root)) }()
	for _, name := range []string{"etc/resolv.conf", "etc/hosts"} {
		content, err := os.ReadFile("/" + name)
		if err != nil {
			return 0, err
		}
		_ = os.Remove(filepath.Join(root, name)) // it may be a link
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil {
			return 0, err
		}
	}
	return run(dir, root, base, "mkdir -p /tmp/native && cd /tmp/native && "+script)
}

// scriptEnv is the base's own environment with a home that is thrown away.
func (b *bench) scriptEnv(base string) ([]string, error) {
	env, err := b.baseEnv(base)
	return append(env, "HOME=/tmp/native"), err
}

func (b *bench) inChroot(_, root, base, script string) (time.Duration, error) {
	if err := command("mount", "--bind", "/dev", filepath.Join(root, "dev")); err != nil {
		return 0, err
	}
	if err := command("mount", "-t", "proc", "proc", filepath.Join(root, "proc")); err != nil {
		return 0, err
	}
	env, err := b.scriptEnv(base)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("chroot", root, "/bin/sh", "-c", script)
	cmd.Env = env
	return timed(cmd)
}

// scriptCapabilities are what package managers need as root; they are Docker's.
var scriptCapabilities = []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}

// inRawRunsc runs the script in the pinned gVisor's own command line, on the
// host's network and without limits.
func (b *bench) inRawRunsc(dir, root, base, script string) (time.Duration, error) {
	env, err := b.scriptEnv(base)
	if err != nil {
		return 0, err
	}
	caps := scriptCapabilities
	raw, err := json.Marshal(object{
		"ociVersion": "1.0.0",
		"process": object{"args": []string{"/bin/sh", "-c", script}, "cwd": "/", "user": object{"uid": 0, "gid": 0}, "env": env,
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps}},
		"root":   object{"path": root},
		"mounts": []object{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}},
		"linux":  object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}},
	})
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644); err != nil {
		return 0, err
	}
	return timed(exec.Command(b.runsc, "--root", filepath.Join(b.dir, "runsc-root"), "--network", "host", "--ignore-cgroups",
		"--host-settings", "ignore", "--overlay2", "none", "run", "--bundle", dir, fmt.Sprintf("b%d", counter.Add(1))))
}

// timed runs a command; its error has the last of what it printed.
func timed(cmd *exec.Cmd) (time.Duration, error) {
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd.Args[len(cmd.Args)-1], err, tail(out))
	}
	return time.Since(start), nil
}
