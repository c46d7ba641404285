package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const key = "sk-atoll-bench-0123456789"

// bench holds the server under test and what the peers need.
type bench struct {
	dir   string
	n     int
	quick bool
	atoll string // path of the binary under test

	url    string
	server *exec.Cmd
	http   *http.Client
	agent  string
	slim   string // environment on the slim template
	cache  string // the server's cache directory

	runsc  string // path of the binary built from the pinned module
	rootfs string // the slim template's root filesystem
	shared string // where the peers have it mounted

	probe      string // path of this program, built to run anywhere
	upstreamAt string // address of the upstream that sandboxes reach
}

type object = map[string]any

func (b *bench) prepare() error {
	top, err := root()
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "building atoll and runsc …")
	b.runsc, b.atoll = filepath.Join(b.dir, "runsc"), filepath.Join(b.dir, "atoll")
	for _, args := range [][]string{
		{"generate", "./internal/sandbox/gvisor"},
		{"build", "-o", b.atoll, "./cmd/atoll"},
		{"build", "-o", b.runsc, "gvisor.dev/gvisor/runsc"},
	} {
		if err := goBuild(top, args...); err != nil {
			return err
		}
	}
	if err := b.start(b.egressConfig()); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "preparing the templates …")
	if err := b.resources(); err != nil {
		return err
	}
	id, _, err := b.firstExec(b.slim)
	if err != nil {
		return err
	}
	if err := b.call("DELETE", "/v1/sessions/"+id, nil, nil); err != nil {
		return err
	}
	if b.rootfs, err = b.findRootfs("slim"); err != nil {
		return err
	}
	return b.mountShared()
}

// goBuild runs the Go tool for what has to be static.
func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// resources makes what sessions need.
func (b *bench) resources() (err error) {
	var out struct{ ID string }
	if err := b.call("POST", "/v1/agents", object{"name": "bench", "model": "claude-opus-4-8"}, &out); err != nil {
		return err
	}
	b.agent = out.ID
	b.slim, err = b.environment(object{"base_template": "slim"})
	return err
}

func cacheDir() (string, error) {
	if dir := os.Getenv("ATOLL_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "atoll"), err
}

// ownCache makes a cache directory that has the user's templates and downloads
// of its own.
func (b *bench) ownCache() error {
	user, err := cacheDir()
	if err != nil {
		return err
	}
	b.cache = filepath.Join(b.dir, "cache")
	if err := os.MkdirAll(b.cache, 0o711); err != nil {
		return err
	}
	for _, name := range []string{"bases", "debs", "locks", "scratch"} {
		if err := os.MkdirAll(filepath.Join(user, name), 0o700); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join(user, name), filepath.Join(b.cache, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// findRootfs asks the server for a template's digest and finds its directory in
// the cache. A template that was never built is built.
func (b *bench) findRootfs(template string) (string, error) {
	env, err := b.environment(object{"base_template": template})
	if err != nil {
		return "", err
	}
	if err := b.buildEnds(env); err != nil {
		return "", err
	}
	var list struct {
		Data []struct{ Name, Digest string }
	}
	if err := b.call("GET", "/atoll/v1/templates", nil, &list); err != nil {
		return "", err
	}
	for _, t := range list.Data {
		if t.Name == template {
			return filepath.EvalSymlinks(filepath.Join(b.cache, "bases", t.Digest, "rootfs"))
		}
	}
	return "", fmt.Errorf("the server lists no template %q", template)
}

// baseEnv is the environment that the template of a root filesystem gives.
func (b *bench) baseEnv(rootfs string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(rootfs), "manifest.json"))
	if err != nil {
		return nil, err
	}
	var m struct{ Env []string }
	err = json.Unmarshal(text, &m)
	return m.Env, err
}

// start runs a server on b.dir with a configuration.
func (b *bench) start(config string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	l.Close()
	if err := b.ownCache(); err != nil {
		return err
	}
	b.url = "http://" + addr
	b.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	log, err := os.Create(filepath.Join(b.dir, "server.log"))
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	b.server = exec.Command(b.atoll, "serve", "--listen", addr, "--data", filepath.Join(b.dir, "data"), "--cache", b.cache, "--config", file)
	b.server.Env = append(os.Environ(), "ATOLL_API_KEY="+key)
	b.server.Stdout, b.server.Stderr = log, log
	b.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.server.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if resp, err := b.http.Get(b.url + "/healthz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return nil
			}
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the server does not answer:\n%s", text)
		}
	}
}

// close removes every session and ends the server.
func (b *bench) close() {
	if b.shared != "" {
		if err := command("umount", b.shared); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
	// The command line of runsc leaves this mount; what was never made has none.
	_ = syscall.Unmount(filepath.Join(b.dir, "runsc-root", "null-netns"), 0)
	if b.server == nil || b.server.Process == nil {
		return
	}
	var list struct{ Data []struct{ ID string } }
	for b.call("GET", "/v1/sessions?limit=100&include_archived=true", nil, &list) == nil && len(list.Data) > 0 {
		for _, d := range list.Data {
			if err := b.call("DELETE", "/v1/sessions/"+d.ID, nil, nil); err != nil {
				fmt.Fprintln(os.Stderr, "bench: deleting a session:", err)
				break
			}
		}
	}
	_ = b.server.Process.Signal(syscall.SIGTERM)
	_ = b.server.Wait()
}

func (b *bench) call(method, path string, body, into any) error {
	var rd io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, b.url+path, rd)
	if err != nil {
		return err
	}
	req.Header.Set("x-api-key", key)
	if body != nil {
		req.Header.Set("content-type", "application/json")
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s %s: %d %s", method, path, resp.StatusCode, raw)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(raw, into)
}

var counter atomic.Int64

func (b *bench) environment(config object) (string, error) {
	config["type"] = "cloud"
	var out struct{ ID string }
	err := b.call("POST", "/v1/environments", object{"name": fmt.Sprintf("bench-%d-%d", os.Getpid(), counter.Add(1)), "config": config}, &out)
	return out.ID, err
}

// echo runs /bin/echo in a session.
func (b *bench) echo(session string) error {
	var out struct{ Stdout string }
	err := b.call("POST", "/atoll/v1/sessions/"+session+"/exec?stream=false", object{"command": []string{"/bin/echo", "hi"}}, &out)
	if err == nil && out.Stdout != "hi\n" {
		err = fmt.Errorf("echo said %q", out.Stdout)
	}
	return err
}

// firstExec creates a session and runs one command in it.
func (b *bench) firstExec(env string) (string, time.Duration, error) {
	start := time.Now()
	var out struct{ ID string }
	if err := b.call("POST", "/v1/sessions", object{"agent": b.agent, "environment_id": env}, &out); err != nil {
		return "", 0, err
	}
	err := b.echo(out.ID)
	return out.ID, time.Since(start), err
}

// load runs do from several clients for a while and reports the rate.
func load(name string, clients int, d time.Duration, do func() error) *sample {
	s := &sample{Name: name}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for range clients {
		wg.Go(func() {
			var own sample
			for time.Since(start) < d {
				t := time.Now()
				err := do()
				own.add(time.Since(t), err)
			}
			mu.Lock()
			defer mu.Unlock()
			s.Millis = append(s.Millis, own.Millis...)
			s.Failures += own.Failures
			s.Note += own.Note
		})
	}
	wg.Wait()
	s.PerSec = float64(len(s.Millis)) / time.Since(start).Seconds()
	return s
}
