package egress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestUnrestricted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "any.example.com")
	w.resolver.set("inside.example.com", "10.0.0.7")
	server, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 server first\r\n")
			_ = c.Close()
		}
	}()
	port := server.Addr().(*net.TCPAddr).Port
	w.know("any.example.com", port)
	g := w.gateway(func(c *Config) { c.BlockHosts = []string{"blocked.example.com"} })
	b := w.open(g, "u", Spec{Mode: ModeUnrestricted})

	t.Run("E245", func(t *testing.T) {
		if code, body, _, err := b.get("https://any.example.com/"); err != nil || code != 200 {
			t.Errorf("got %d %q %v", code, body, err)
		}
		if r := b.record(); r.Rule != "unrestricted" || r.Host != "any.example.com" {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("E246", func(t *testing.T) {
		out, err := io.ReadAll(b.to("any.example.com", port))
		if err != nil || string(out) != "220 server first\r\n" {
			t.Errorf("got %q %v", out, err)
		}
	})
	t.Run("E253", func(t *testing.T) {
		for text, public := range guardTable() {
			a := netip.MustParseAddr(text)
			if public || !a.Is4() || a.IsLoopback() || a.IsMulticast() || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() || text == "169.254.100.2" || text[:4] == "240." || text == "198.18.0.1" {
				continue
			}
			code, body, _, err := b.get("http://" + text + "/")
			if err != nil || code != 403 || !strings.Contains(body, text) {
				t.Errorf("%s: %d %q %v", text, code, body, err)
			}
		}
		if err := b.closed("10.0.0.5:22"); !isReset(err) {
			t.Errorf("got %v, want a reset", err)
		}
	})
	t.Run("E254", func(t *testing.T) {
		code, body, _, err := b.get("http://inside.example.com/")
		if err != nil || code != 403 || !strings.Contains(body, "inside.example.com") {
			t.Errorf("got %d %q %v", code, body, err)
		}
		b.wantReason(ReasonAddressNotPublic)
		_, err = b.tls(b.to("inside.example.com", 443), "inside.example.com") // E257
		if err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("E256", func(t *testing.T) {
		if err := b.closed(b.resolve("any.example.com") + ":25"); !isReset(err) {
			t.Errorf("by name: %v", err)
		}
		if err := b.closed("203.0.113.9:25"); !isReset(err) {
			t.Errorf("by address: %v", err)
		}
	})
	t.Run("E168", func(t *testing.T) {
		code, body, _, err := b.get("http://blocked.example.com/")
		if err != nil || code != 403 || !strings.Contains(body, "blocked.example.com") {
			t.Errorf("got %d %q %v", code, body, err)
		}
		rs, err := g.Records("u", Filter{Verdict: "refused"})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range rs {
			found = found || r.Protocol == "dns" && r.Reason == ReasonBlocklisted
		}
		if !found {
			t.Error("no record says blocklisted")
		}
	})
	t.Run("E258", func(t *testing.T) {
		if _, err := b.dial("tcp", "[2606:4700::1]:443"); err == nil {
			t.Error("IPv6 connected")
		}
	})
	t.Run("E255", func(t *testing.T) {
		c, err := b.dial("udp", "10.0.0.5:123")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
	})
}

// E199, E204: ports of their own.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	listen := func(serve func(net.Conn)) int {
		l, err := net.Listen("tcp", netip.AddrPortFrom(w.addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return l.Addr().(*net.TCPAddr).Port
	}
	git := listen(func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n"); _ = c.Close() })
	mcp := listen(func(c net.Conn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{w.cert}})
		_, _ = io.WriteString(tc, "mcp")
		_ = tc.Close()
	})
	w.know("git.example.com", git)
	w.know("mcp.example.com", mcp)
	b := w.open(w.gateway(nil), "e", Spec{Mode: ModeLimited, Endpoints: []Endpoint{
		{Host: testHost("git.example.com"), Port: git, Rule: "operator", Raw: true},
		{Host: testHost("mcp.example.com"), Port: mcp, Rule: "mcp:tools"},
	}})
	if out, err := io.ReadAll(b.to("git.example.com", git)); err != nil || string(out) != "SSH-2.0-x\r\n" {
		t.Errorf("server first: %q %v", out, err)
	}
	if err := b.closed(fmt.Sprintf("%s:%d", b.resolve("mcp.example.com"), git)); !isReset(err) {
		t.Errorf("another host's port: %v", err)
	}
	b.wantReason(ReasonPortNotAllowed)
	tc, err := b.tls(b.to("mcp.example.com", mcp), "mcp.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(tc); err != nil || string(out) != "mcp" {
		t.Errorf("mcp: %q %v", out, err)
	}
	if r := b.wantReason(ReasonOK); r.Rule != "mcp:tools" {
		t.Errorf("record %+v", r)
	}
	if out, err := raw(b.to("mcp.example.com", mcp), "SSH-2.0-y\r\n"); !isReset(err) {
		t.Errorf("another protocol on it: %q %v", out, err)
	}
	b.wantReason(ReasonProtocolNotAllowed)
}

// TestObserve: a build that learns reaches every name, checked, and the records
// say which.
func TestObserve(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "one.example.com", "two.example.com")
	w.resolver.set("inside.example.com", "10.0.0.1")
	b := w.open(w.gateway(nil), "o", Spec{Mode: ModeObserve})
	for _, url := range []string{"https://one.example.com/", "http://two.example.com/"} {
		if code, _, _, err := b.get(url); err != nil || code != 200 {
			t.Errorf("%s: %d %v", url, code, err)
		}
	}
	if code, _, _, err := b.get("http://inside.example.com/"); err != nil || code != 403 {
		t.Errorf("guard: %d %v", code, err)
	}
	if _, err := b.tls(b.to("one.example.com", 443), "two.example.com"); err == nil {
		t.Error("a mismatched name passed")
	}
	if code, _, _, err := b.get("http://203.0.113.9/"); err != nil || code != 403 {
		t.Errorf("raw address: %d %v", code, err)
	}
	rs, err := b.g.Records("o", Filter{Verdict: "allowed"})
	if err != nil {
		t.Fatal(err)
	}
	var hosts []string
	for _, r := range rs {
		hosts = append(hosts, r.Host)
	}
	if diff := cmp.Diff([]string{"two.example.com", "one.example.com"}, hosts); diff != "" {
		t.Error(diff)
	}
}
