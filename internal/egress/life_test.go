package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netns"
)

// A test binary started with this variable is a server that opens networks and
// waits to be killed.
const crashVariable = "ATOLL_EGRESS_TEST_CRASH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashVariable); dir != "" {
		crashServer(dir, os.Getenv(crashVariable+"_UPSTREAM"))
	}
	os.Exit(m.Run())
}

// crashSpec is the policy of the server that is killed.
func crashSpec() Spec {
	return Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "*.wild.example.com"}}
}

// crashServer opens two networks, asks for names in one, and tells on standard
// output when it may be killed.
func crashServer(dir, upstream string) {
	addr := netip.MustParseAddr(upstream)
	r := &fakeResolver{hosts: map[string][]string{}}
	r.set("ok.example.com", upstream)
	g, err := New(Config{Dir: dir, Resolver: r, PoolSize: 2, Exempt: []Exemption{{Host: "ok.example.com", CIDR: netip.PrefixFrom(addr, 32)}}})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	t := &testing.T{}
	p := mustCompile(t, crashSpec())
	for _, id := range []string{"one", "two"} {
		path, err := g.Open(context.Background(), id, Meta{SessionID: id}, p)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		b := &box{t: t, g: g, id: id, path: path}
		for _, name := range []string{"b.wild.example.com", "a.wild.example.com"} {
			fmt.Println(id, name, b.resolve(name))
		}
	}
	fmt.Println("ready")
	_, _ = io.ReadAll(os.Stdin) // until killed
}

// killedServer runs crashServer, kills it, and returns what it told.
func killedServer(t *testing.T, dir string, upstream netip.Addr) []string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashVariable+"="+dir, crashVariable+"_UPSTREAM="+upstream.String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(out); s.Scan() && s.Text() != "ready"; {
		lines = append(lines, s.Text())
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if len(lines) != 4 {
		t.Fatalf("server said %q", lines)
	}
	return lines
}

// E216, E217: a server that is killed leaves closed networks, and the next one
// serves them with the same addresses for the same names.
func TestE217Reopen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	dir := t.TempDir()
	said := killedServer(t, dir, w.addr)
	g := w.gateway(func(c *Config) { c.Dir = dir })
	ids, err := g.List(context.Background())
	if err != nil || !cmp.Equal(ids, []string{"one", "two"}) {
		t.Fatalf("List: %q %v", ids, err)
	}
	down := &box{w.t, w, g, "one", filepath.Join(dir, "networks", "one", "runtime")}
	if _, err := down.dial("tcp", "198.18.1.0:80"); !isReset(err) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("E216: while it is down: %v", err)
	}
	for _, id := range ids {
		path, err := g.Reopen(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := g.Reopen(context.Background(), id); err != nil || again != path {
			t.Errorf("again: %s %v", again, err)
		}
		b := &box{w.t, w, g, id, path}
		// The addresses in the other order, so that a new table would differ.
		for i := len(said) - 1; i >= 0; i-- {
			f := strings.Fields(said[i])
			if f[0] == id && b.resolve(f[1]) != f[2] {
				t.Errorf("%s: %s is %s now", id, said[i], b.resolve(f[1]))
			}
		}
		if code, _, _, err := b.get("http://ok.example.com/"); err != nil || code != 200 {
			t.Errorf("%s: %d %v", id, code, err)
		}
		if code, _, _, err := b.get("http://no.example.com/"); err != nil || code != 403 {
			t.Errorf("%s: %d %v", id, code, err)
		}
		if r := b.record(); r.SessionID != id {
			t.Errorf("record %+v", r)
		}
	}
}

// E227: what cannot be read stays closed.
func TestE227Damage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	damage := map[string]func(path string) error{
		"table cut":       func(p string) error { return os.Truncate(p+"/names", 40) },
		"table corrupted": func(p string) error { return rewriteFile(p+"/names", "ok.example.com", "no.example.com") },
		"table gone":      func(p string) error { return os.Remove(p + "/names") },
		"policy gone":     func(p string) error { return os.Remove(p + "/network.json") },
		"policy cut":      func(p string) error { return os.Truncate(p+"/network.json", 20) },
		"policy changed":  func(p string) error { return rewriteFile(p+"/network.json", `"limited"`, `"open"`) },
		"namespace gone":  func(p string) error { return unmount(p + "/gateway") },
	}
	dir := t.TempDir()
	first := w.gateway(func(c *Config) { c.Dir = dir })
	i := 0
	ids := map[string]string{}
	for name, f := range damage {
		i++
		id := fmt.Sprintf("n%d", i)
		ids[name] = id
		w.open(first, id, crashSpec())
		defer func() {
			if t.Failed() {
				t.Logf("%s is %s", id, name)
			}
		}()
		if err := f(filepath.Join(dir, "networks", id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	g := w.gateway(func(c *Config) { c.Dir = dir })
	for name, id := range ids {
		_, err := g.Reopen(context.Background(), id)
		if err == nil || !strings.Contains(err.Error(), "stays closed") {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b := &box{t, w, g, id, filepath.Join(dir, "networks", id, "runtime")}
		if c, err := b.dial("tcp", "198.18.1.0:80"); err == nil {
			t.Errorf("%s: connected to %s", name, c.RemoteAddr())
		}
		if err := g.Close(context.Background(), id); err != nil {
			t.Errorf("%s: closing: %v", name, err)
		}
	}
}

func rewriteFile(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600)
}

// E215: without its rules a gateway delivers nothing.
func TestE215FlushedRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	addr := b.resolve("ok.example.com")
	ns, err := netns.GetFromPath(filepath.Join(filepath.Dir(b.path), "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = inNamespace(ns, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := b.dial("tcp", addr+":80"); err == nil {
		t.Errorf("connected to %s", c.RemoteAddr())
	}
	for _, port := range []int{gatewayPort, 80} {
		out := ""
		if c, err := b.dial("tcp", fmt.Sprintf("169.254.100.1:%d", port)); err == nil {
			out, _ = raw(c, "GET / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n")
		}
		if strings.Contains(out, "200 OK") {
			t.Errorf("port %d: %q", port, out)
		}
	}
	if seen := w.upstream(); len(seen) != 0 {
		t.Errorf("upstream saw %q", seen)
	}
}

// E193, E055: a tightened policy closes what it does not allow, at once.
func TestE193Tighten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com")
	g := w.gateway(nil)
	b := w.open(g, "g", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "two.example.com"}})
	addr := b.resolve("ok.example.com")
	c := b.to("ok.example.com", 443)
	tc, err := b.tls(c, "ok.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Update(context.Background(), "g", mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"two.example.com"}})); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(tc); !isReset(err) {
		t.Errorf("open connection: %v", err)
	}
	b.wantReason(ReasonPolicyChanged)
	out, err := raw(b.mustDial(addr+":80"), "GET / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n")
	if err != nil || !strings.HasPrefix(out, "HTTP/1.1 403 ") || !strings.Contains(out, "ok.example.com") {
		t.Errorf("its address: %q %v", out, err)
	}
	if r := b.wantReason(ReasonStaleMapping); r.Host != "ok.example.com" || r.Generation != 2 {
		t.Errorf("record %+v", r)
	}
	if got := b.resolve("ok.example.com"); got != "198.18.0.1" {
		t.Errorf("its name: %s", got)
	}
	if code, _, _, err := b.get("http://two.example.com/"); err != nil || code != 200 {
		t.Errorf("the other host: %d %v", code, err)
	}
	if err := g.Update(context.Background(), "g", nil); err == nil {
		t.Error("no policy was accepted")
	}
}

// E194: policies change under load, and what none of them allows is never
// reached.
func TestE194Reloads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com", "no.example.com")
	g := w.gateway(func(c *Config) { c.Limits.ConnectionRate = 1e5 })
	one := Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}}
	both := Spec{Mode: ModeLimited, AllowedHosts: []string{"two.example.com", "ok.example.com"}}
	b := w.open(g, "r", one)
	stop := make(chan struct{})
	var all sync.WaitGroup
	for _, host := range []string{"no.example.com", "ok.example.com", "two.example.com"} {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				code, _, _, err := b.get("http://" + host + "/")
				if host == "no.example.com" && (err != nil || code != 403) || host == "ok.example.com" && (err != nil || code != 200) {
					t.Errorf("%s: %d %v", host, code, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		next := one
		if i%2 == 0 {
			next = both
		}
		if err := g.Update(context.Background(), "r", mustCompile(t, next)); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	all.Wait()
	for _, s := range w.upstream() {
		if strings.Contains(s, "no.example.com") {
			t.Errorf("upstream saw %q", s)
		}
	}
}

// E220: a network that nobody has claimed refuses everything.
func TestE220Unclaimed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(nil)
	s, err := g.make()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, addr := range []string{"198.18.1.0:80", "198.18.0.1:80", "203.0.113.9:443"} {
		err := inNamespace(s.pair.runtime, func() error {
			b := &box{t: t, path: fmt.Sprintf("/proc/self/fd/%d", int(s.pair.runtime))}
			return b.closed(addr)
		})
		if !isReset(err) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// E226, E238: nothing is left of fifty networks, nor of their connections.
func TestE226NothingLeft(t *testing.T) {
	w := newWorld(t, "ok.example.com")
	dir := t.TempDir()
	g, err := New(Config{Dir: dir, Resolver: w.resolver, Exempt: w.exempt, PoolSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	p := mustCompile(t, crashSpec())
	before := census(t)
	var all sync.WaitGroup
	work := make(chan int)
	for range 4 {
		all.Go(func() {
			for i := range work {
				id := fmt.Sprintf("leak%d", i)
				path, err := g.Open(context.Background(), id, Meta{SessionID: id}, p)
				if err != nil {
					t.Error(err)
					continue
				}
				b := &box{t, w, g, id, path}
				if code, _, _, err := b.get("http://ok.example.com/"); err != nil || code != 200 {
					t.Errorf("%d %v", code, err)
				}
				open, err := b.dial("tcp", "198.18.1.0:80")
				if err != nil {
					t.Error(err)
					continue
				}
				if err := g.Close(context.Background(), id); err != nil {
					t.Error(err)
				}
				if err := g.Close(context.Background(), id); err != nil {
					t.Errorf("closing again: %v", err)
				}
				_ = open.Close()
			}
		})
	}
	for i := range 50 {
		work <- i
	}
	close(work)
	all.Wait()
	if err := g.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := g.Shutdown(context.Background()); err != nil {
		t.Errorf("shutting down again: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "networks")); err != nil || len(left) != 0 {
		t.Errorf("files: %v %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts below %s are left (%v)", dir, err)
	}
	for what, n := range before {
		eventually(t, fmt.Sprintf("%s back to %d", what, n), func() bool { return census(t)[what] <= n })
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name() == gatewayLink {
			t.Errorf("link %s on the host", l.Name())
		}
	}
}

// census counts what a network takes: goroutines, descriptors, and namespaces
// that this process holds.
func census(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{"goroutines": runtime.NumGoroutine(), "namespaces held": 0}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	out["descriptors"] = len(fds)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "net:[") {
			out["namespaces held"]++
		}
	}
	return out
}

// E214: each step that fails is named and leaves nothing.
func TestE214OpenFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway(nil)
	ctx := context.Background()
	p := mustCompile(t, Spec{Mode: ModeLimited})
	for _, id := range []string{"", "..", "a/b", "a.b", strings.Repeat("x", 65), "a\x00"} {
		if _, err := g.Open(ctx, id, Meta{}, p); err == nil {
			t.Errorf("id %q was accepted", id)
		}
		if err := g.Close(ctx, id); err == nil {
			t.Errorf("id %q was closed", id)
		}
	}
	if _, err := g.Open(ctx, "x", Meta{}, nil); err == nil {
		t.Error("opened without a policy")
	}
	w.open(g, "x", Spec{Mode: ModeLimited})
	if _, err := g.Open(ctx, "x", Meta{}, p); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := g.Records("y", Filter{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("records: %v", err)
	}
	if _, err := g.Reopen(ctx, "y"); !errors.Is(err, ErrNotFound) {
		t.Errorf("reopen: %v", err)
	}
	if err := g.Update(ctx, "y", p); !errors.Is(err, ErrNotFound) {
		t.Errorf("update: %v", err)
	}
	// A half-made network of a killed server.
	half := filepath.Join(g.dir.path, "half")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if ids, err := g.List(ctx); err != nil || !cmp.Equal(ids, []string{"half", "x"}) {
		t.Errorf("List: %q %v", ids, err)
	}
	if _, err := g.Reopen(ctx, "half"); err == nil {
		t.Error("reopened half a network")
	}
	if err := g.Close(ctx, "half"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// TestCheck: the prerequisites are tried for real.
func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.gateway(nil).Check(context.Background()); err != nil {
		t.Error(err)
	}
}

// E218: a panic ends what it happened in, and nothing else.
func TestE218Panic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "boom.example.com")
	var panics atomic.Int64
	g := w.gateway(func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == "panic" {
				panics.Add(1)
			}
			return a
		}}))
		c.OnDecision = func(r Record) {
			if r.Host == "boom.example.com" || r.ClaimedHost == "boom.example.com" {
				panic("boom")
			}
		}
	})
	b := w.open(g, "p", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "boom.example.com"}})
	for _, f := range []func() error{
		func() error { _, err := b.tls(b.to("boom.example.com", 443), "boom.example.com"); return err },
		func() error { _, _, _, err := b.get("http://boom.example.com/"); return err },
		func() error { _, err := b.tls(b.mustDial("198.18.0.1:443"), "boom.example.com"); return err },
	} {
		if err := f(); err == nil {
			t.Error("no error")
		}
		if code, _, _, err := b.get("http://ok.example.com/"); err != nil || code != 200 {
			t.Errorf("afterwards: %d %v", code, err)
		}
	}
	if n := panics.Load(); n != 3 {
		t.Errorf("%d panics in the log, want 3", n)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	if f := Files(); !strings.Contains(string(f["/etc/resolv.conf"]), "nameserver 169.254.100.1\n") {
		t.Errorf("got %q", f)
	}
}
