package egress

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// E225: a network that is suspended has no namespace and no connection; resumed
// it has the same addresses for the same names, its policy and its records.
func TestE225Suspend(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com")
	dir := t.TempDir()
	g := w.gateway(func(c *Config) { c.Dir = dir })
	ctx := context.Background()
	b := w.open(g, "h", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "*.wild.example.com"}})
	late := b.resolve("b.wild.example.com")
	open, err := b.tls(b.to("ok.example.com", 443), "ok.example.com")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second changes nothing
		if err := g.Suspend(ctx, "h"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadAll(open); err == nil {
		t.Error("a connection outlived the network")
	}
	if rs, err := g.Records("h", Filter{}); err != nil || len(rs) == 0 || rs[0].Reason != ReasonSessionEnded {
		t.Errorf("records while suspended: %+v %v", rs, err)
	}
	if _, err := g.Reopen(ctx, "h"); !errors.Is(err, ErrSuspended) {
		t.Errorf("reopened: %v", err)
	}
	if _, err := os.Stat(b.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace is there: %v", err)
	}
	if err := g.Update(ctx, "h", mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"two.example.com", "*.wild.example.com"}})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if path, err := g.Resume(ctx, "h"); err != nil || path != b.path {
			t.Fatalf("%s %v", path, err)
		}
	}
	if got := b.resolve("b.wild.example.com"); got != late {
		t.Errorf("another address: %s, was %s", got, late)
	}
	if code, _, _, err := b.get("http://two.example.com/"); err != nil || code != 200 {
		t.Errorf("a host of the newer policy: %d %v", code, err)
	}
	if code, _, _, err := b.get("http://ok.example.com/"); err != nil || code != 403 {
		t.Errorf("a host of the older policy: %d %v", code, err)
	}
	if meta, policy, err := g.Describe("h"); err != nil || meta.SessionID != "h" || policy.Spec().AllowedHosts[0] != "two.example.com" {
		t.Errorf("%+v %+v %v", meta, policy, err)
	}

	// Another server finds it suspended, or half suspended, and goes on. A connection
	// that the client has had all of, and that is not closed yet, would be ended and recorded.
	served := g.live("h")
	eventually(t, "no flow left", func() bool { served.mu.Lock(); defer served.mu.Unlock(); return len(served.flows) == 0 })
	if err := g.Suspend(ctx, "h"); err != nil {
		t.Fatal(err)
	}
	if err := g.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "networks", "h", "gateway"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	b.g = w.gateway(func(c *Config) { c.Dir = dir })
	if _, err := b.g.Resume(ctx, "h"); err != nil {
		t.Fatal(err)
	}
	if got := b.resolve("b.wild.example.com"); got != late {
		t.Errorf("after a restart: %s, was %s", got, late)
	}
	if rs, err := b.g.Records("h", Filter{}); err != nil || len(rs) < 3 || rs[len(rs)-1].Host != "ok.example.com" || rs[0].Reason != ReasonNameNotAllowed {
		t.Errorf("records after a restart: %+v %v", rs, err)
	}
	if ids, err := b.g.List(ctx); err != nil || len(ids) != 1 {
		t.Errorf("%q %v", ids, err)
	}
	if err := b.g.Suspend(ctx, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("suspending nothing: %v", err)
	}
	if _, err := b.g.Resume(ctx, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("resuming nothing: %v", err)
	}
}

// A table that is damaged while a network is suspended keeps it closed.
func TestE227SuspendedDamage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := w.gateway(nil)
	b := w.open(g, "d", crashSpec())
	if err := g.Suspend(context.Background(), "d"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(filepath.Dir(b.path), "names"), 40); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Resume(context.Background(), "d"); err == nil {
		t.Error("resumed with half a table")
	}
	if _, err := os.Stat(b.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a namespace is there: %v", err)
	}
}
