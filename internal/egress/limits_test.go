package egress

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// E231–E233: limits hold and are said.
func TestLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	t.Run("connections", func(t *testing.T) {
		g := w.gateway(func(c *Config) { c.Limits.Connections = 4 })
		b := w.open(g, "c", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
		addr := b.resolve("ok.example.com") + ":443"
		open := 0
		for range 8 {
			if c, err := b.dial("tcp", addr); err == nil {
				if _, err := b.tls(c, "ok.example.com"); err == nil {
					open++
				}
			}
		}
		if open != 4 {
			t.Errorf("%d connections open, want 4", open)
		}
		b.wantReason(ReasonConnectionLimit)
	})
	t.Run("rate", func(t *testing.T) {
		g := w.gateway(func(c *Config) { c.Limits.ConnectionRate = 1 })
		b := w.open(g, "r", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
		for range 6 {
			_ = b.closed("198.18.0.1:22")
		}
		b.wantReason(ReasonRateLimit)
	})
	t.Run("questions", func(t *testing.T) {
		g := w.gateway(func(c *Config) { c.Limits.DNSRate = 1 })
		b := w.open(g, "q", Spec{Mode: ModeLimited})
		c := b.mustDial("169.254.100.1:53")
		n := 0
		for range 5 {
			if out, _ := raw(c, "\x00\x0c\x00\x07\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"); out == "" {
				break
			}
			n++
		}
		if n > 2 {
			t.Errorf("%d questions answered", n)
		}
	})
}

// TestOnDecision: the metrics hear of every decision, also of those that a
// record only counts.
func TestOnDecision(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	var mu sync.Mutex
	got := map[string]int{}
	g := w.gateway(func(c *Config) {
		c.OnDecision = func(r Record) {
			mu.Lock()
			defer mu.Unlock()
			got[string(r.Verdict)+" "+r.Protocol]++
		}
	})
	b := w.open(g, "m", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	for range 3 {
		_, _, _, _ = b.get("http://ok.example.com/")
		_, _, _, _ = b.get("http://no.example.com/")
	}
	want := map[string]int{"allowed http": 3, "refused http": 3, "refused dns": 3}
	eventually(t, "all decisions", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return cmp.Equal(got, want)
	})
	rs, err := g.Records("m", Filter{Verdict: "refused"})
	if err != nil || len(rs) != 2 || rs[0].Count != 3 { // E292
		t.Errorf("records %+v %v", rs, err)
	}
	if data, err := json.Marshal(rs[0]); err != nil || !strings.Contains(string(data), `"session_id":"m"`) {
		t.Errorf("%s %v", data, err)
	}
}
