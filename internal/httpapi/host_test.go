package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// host is a Sandboxes that runs commands on the machine of the test, each in a
// process group of its own, and keeps files in one directory.
type host struct {
	t    *testing.T
	dir  string
	mu   sync.Mutex
	last *hostProcess // the newest command, under mu
	log  []byte       // of the build
	tail chan []byte  // what a followed log gets
	ask  egress.Filter
}

func newHost(t *testing.T) *host {
	return &host{t: t, dir: t.TempDir(), tail: make(chan []byte)}
}

func (h *host) check(caller control.Caller, id string) error {
	if id != "sesn_1" && id != "env_1" {
		return &control.Fault{Kind: control.NotFound, Message: "Session " + id + " not found."}
	}
	if caller.Workspace == "" {
		return errors.New("no caller")
	}
	return nil
}

type hostProcess struct {
	cmd     *exec.Cmd
	done    chan struct{}
	exit    sandbox.Exit
	resized chan sandbox.WindowSize
}

func (h *host) Exec(_ context.Context, caller control.Caller, session string, cmd sandbox.Command) (sandbox.Process, error) {
	if err := h.check(caller, session); err != nil {
		return nil, err
	}
	c := exec.Command(cmd.Args[0], cmd.Args[1:]...)
	c.Env, c.Dir, c.Stdout, c.Stderr = append(os.Environ(), cmd.Env...), cmd.Dir, cmd.Stdout, cmd.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = 200 * time.Millisecond
	if cmd.Stdin != nil {
		stdin, err := c.StdinPipe()
		if err != nil {
			return nil, err
		}
		go func() {
			_, _ = io.Copy(stdin, cmd.Stdin) // ends with the program
			_ = stdin.Close()
		}()
	}
	if err := c.Start(); err != nil {
		return nil, &control.Fault{Kind: control.Invalid, Message: "command not found", Cause: err}
	}
	p := &hostProcess{cmd: c, done: make(chan struct{}), resized: make(chan sandbox.WindowSize, 1)}
	h.mu.Lock()
	h.last = p
	h.mu.Unlock()
	go func() {
		defer close(p.done)
		_ = c.Wait() // the state says how it ended
		status := c.ProcessState.Sys().(syscall.WaitStatus)
		p.exit.Code = status.ExitStatus()
		if status.Signaled() {
			p.exit = sandbox.Exit{Code: 128 + int(status.Signal()), Signal: "SIGKILL"}
		}
	}()
	h.t.Cleanup(func() { _ = p.Signal(context.Background(), 9) })
	return p, nil
}

func (p *hostProcess) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

func (p *hostProcess) Signal(_ context.Context, signal int) error {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(signal)) // it may have ended
	return nil
}

func (p *hostProcess) Resize(size sandbox.WindowSize) error {
	p.resized <- size
	return nil
}

func (h *host) process() *hostProcess {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

func (h *host) ReadFile(_ context.Context, caller control.Caller, session, path string) (sandbox.FileInfo, io.ReadCloser, error) {
	if err := h.check(caller, session); err != nil {
		return sandbox.FileInfo{}, nil, err
	}
	path = filepath.Join(h.dir, path)
	st, err := os.Stat(path)
	if err != nil {
		return sandbox.FileInfo{}, nil, &control.Fault{Kind: control.NotFound, Message: "no such file or directory", Cause: err}
	}
	info := sandbox.FileInfo{Path: path, Dir: st.IsDir(), Size: st.Size(), Mode: uint32(st.Mode().Perm()), Mtime: st.ModTime()}
	if info.Dir {
		return info, io.NopCloser(bytes.NewReader([]byte("a tar"))), nil
	}
	f, err := os.Open(path)
	if filepath.Base(path) == "shrinks" {
		info.Size += 1 << 20
	}
	return info, f, err
}

func (h *host) WriteFile(_ context.Context, caller control.Caller, session, path string, mode uint32, body io.Reader) error {
	if err := h.check(caller, session); err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir, path), data, os.FileMode(mode))
}

func (h *host) WriteTar(ctx context.Context, caller control.Caller, session, path string, body io.Reader) error {
	return h.WriteFile(ctx, caller, session, path+".tar", 0o600, body)
}

func (h *host) RemoveFile(_ context.Context, caller control.Caller, session, path string) error {
	if err := h.check(caller, session); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(h.dir, path))
}

func (h *host) BuildStatus(_ context.Context, caller control.Caller, environment string) (api.Build, error) {
	return api.Build{Type: "environment_build", EnvironmentID: environment, Status: api.BuildReady, Layers: []api.BuildLayer{}}, h.check(caller, environment)
}

func (h *host) Rebuild(ctx context.Context, caller control.Caller, environment string) (api.Build, error) {
	return h.BuildStatus(ctx, caller, environment)
}

func (h *host) BuildLog(ctx context.Context, caller control.Caller, environment string, offset int64, follow bool, write func([]byte) error) error {
	if err := h.check(caller, environment); err != nil {
		return err
	}
	if rest := h.log[min(int(offset), len(h.log)):]; len(rest) > 0 {
		if err := write(rest); err != nil {
			return err
		}
	}
	for follow {
		select {
		case p, ok := <-h.tail:
			if !ok {
				return nil
			}
			if err := write(p); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (h *host) Egress(_ context.Context, caller control.Caller, session string, filter egress.Filter) ([]egress.Record, error) {
	h.mu.Lock()
	h.ask = filter
	h.mu.Unlock()
	return nil, h.check(caller, session)
}

func (h *host) Templates(_ context.Context, caller control.Caller) ([]api.Template, error) {
	return []api.Template{{Name: "slim", Status: "ready", Registries: []api.TemplateRegistry{}}}, nil
}
