package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// chrootBox is a Box made of an overlay mount and namespaces on this machine's
// network: enough to run the real managers without the real sandbox.
type chrootBox struct {
	dir, root string
	env       []string
	life      context.Context
	end       context.CancelFunc
	hooks     *boxHooks
}

// boxHooks let a test watch and change what boxes do.
type boxHooks struct {
	opened  atomic.Int64
	reached []Contact
	usage   BoxUsage
	// before, if set, runs before a command and may answer for it.
	before func(ctx context.Context, args []string, root string) (*BoxExit, error)
}

func openChroot(t *testing.T, h *boxHooks) OpenBox {
	t.Helper()
	boxes := t.TempDir()
	return func(ctx context.Context, spec BoxSpec) (Box, error) {
		h.opened.Add(1)
		dir, err := os.MkdirTemp(boxes, "box-")
		if err != nil {
			return nil, err
		}
		b := &chrootBox{dir: dir, root: filepath.Join(dir, "root"), env: spec.Env, hooks: h}
		b.life, b.end = context.WithCancel(context.Background())
		for _, d := range []string{"upper", "work", "root"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				return nil, err
			}
		}
		if err := b.mount(spec.Layers); err != nil {
			b.Close(ctx)
			return nil, err
		}
		return b, nil
	}
}

func (b *chrootBox) mount(layers []string) error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,redirect_dir=off,metacopy=off,index=off",
		strings.Join(topFirst(layers), ":"), b.dir, b.dir)
	if err := unix.Mount("overlay", b.root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mounting overlay: %w", err)
	}
	for _, d := range []string{"dev", "proc", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.root, d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("/dev", filepath.Join(b.root, "dev"), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, f := range []string{"etc/resolv.conf", "etc/hosts"} {
		text, err := os.ReadFile("/" + f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(b.root, f), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *chrootBox) Run(ctx context.Context, c BoxCommand) (BoxExit, error) {
	if b.hooks.before != nil {
		if exit, err := b.hooks.before(ctx, c.Args, b.root); exit != nil || err != nil {
			return *exit, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()
	args := append([]string{"-m", "-p", "-u", "-i", "-f", "--kill-child", "--root=" + b.root, "--mount-proc", "--wd=" + c.Dir, "--"}, c.Args...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(append([]string{}, b.env...), c.Env...)
	var mu sync.Mutex
	cmd.Stderr = lockedWriter{&mu, c.Output}
	cmd.Stdout = cmd.Stderr
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	cmd.Stdin = c.Stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	if ctx.Err() != nil {
		return BoxExit{}, ctx.Err()
	}
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return BoxExit{Code: ee.ExitCode()}, nil
	}
	return BoxExit{}, err
}

type lockedWriter struct {
	mu *sync.Mutex
	w  interface{ Write([]byte) (int, error) }
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		return len(p), nil
	}
	return l.w.Write(p)
}

func (b *chrootBox) Reached() []Contact { return b.hooks.reached }

func (b *chrootBox) Usage(context.Context) (BoxUsage, error) { return b.hooks.usage, nil }

func (b *chrootBox) Tree(context.Context) (string, error) {
	b.unmount()
	return filepath.Join(b.dir, "upper"), nil
}

func (b *chrootBox) unmount() {
	b.end()
	_ = unix.Unmount(filepath.Join(b.root, "dev"), unix.MNT_DETACH)
	_ = unix.Unmount(b.root, unix.MNT_DETACH)
}

func (b *chrootBox) Close(context.Context) error {
	b.unmount()
	return os.RemoveAll(b.dir)
}

// enter runs a command as a session would: on the base and the layers, with an
// environment that has nothing but the template's variables.
func enter(t *testing.T, base *Base, layers []Layer, args ...string) string {
	t.Helper()
	dirs := []string{base.Dir}
	for _, l := range layers {
		dirs = append(dirs, l.Dir)
	}
	box, err := openChroot(t, &boxHooks{})(t.Context(), BoxSpec{Layers: dirs, Env: base.Env})
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close(t.Context())
	var out bytes.Buffer
	exit, err := box.Run(t.Context(), BoxCommand{Args: args, Dir: "/", Output: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%q: %v, %v: %s", args, exit, err, out.String())
	}
	return strings.TrimSpace(out.String())
}
