package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// E205: a client on the server's side has the listed hosts, or those and the
// MCP endpoints, and the guard.
func TestE205Clients(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "mcp.example.com", "npm.example.com", "no.example.com")
	w.resolver.set("private.example.com", "10.0.0.5")
	g := w.gateway(nil)
	limited := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "private.example.com"}, Endpoints: []Endpoint{
		{Host: testHost("mcp.example.com"), Port: 443, Rule: "mcp:x"}, {Host: testHost("npm.example.com"), Rule: "registry:npm"},
	}})
	open := mustCompile(t, Spec{Mode: ModeUnrestricted})
	none := mustCompile(t, Spec{Mode: ModeLimited})
	for i, tt := range []struct {
		source, address string
		policy          *Policy
		want            Reason
	}{
		{SourceWebTool, "ok.example.com:443", limited, ReasonOK},
		{SourceWebTool, "OK.example.com.:80", limited, ReasonOK},
		{SourceWebTool, "a.ok.example.com:443", limited, ReasonNameNotAllowed},
		{SourceWebTool, "ok.example.com:22", limited, ReasonPortNotAllowed},
		{SourceWebTool, "mcp.example.com:443", limited, ReasonNameNotAllowed},
		{SourceWebTool, "npm.example.com:443", limited, ReasonNameNotAllowed},
		{SourceWebTool, "ok.example.com:443", none, ReasonNameNotAllowed},
		{SourceWebTool, "private.example.com:443", limited, ReasonAddressNotPublic},
		{SourceWebTool, "no.example.com:443", open, ReasonOK},
		{SourceWebTool, "127.0.0.1:443", open, ReasonAddressNotPublic},
		{SourceWebTool, "[::1]:443", open, ReasonAddressNotPublic},
		{SourceWebTool, "[fe80::1%lo]:443", open, ReasonAddressNotPublic},
		{SourceWebTool, "203.0.113.7:443", limited, ReasonNoMapping},
		{SourceWebTool, "2130706433:443", open, ReasonNameNotAllowed},
		{SourceMCP, "mcp.example.com:443", limited, ReasonOK},
		{SourceMCP, "mcp.example.com:80", limited, ReasonPortNotAllowed},
		{SourceMCP, "ok.example.com:443", limited, ReasonOK},
		{SourceMCP, "npm.example.com:443", limited, ReasonNameNotAllowed},
	} {
		id := fmt.Sprintf("client%d", i)
		c, err := g.DialContext(context.Background(), Client{ID: id, Source: tt.source, Meta: Meta{SessionID: id, Source: SourceSandbox}, Policy: tt.policy}, "tcp", tt.address)
		got := ReasonOK
		if err != nil {
			got = dialReason(err)
		} else {
			_ = c.Close()
		}
		if got != tt.want {
			t.Errorf("%s %s under %s: %v, want %s", tt.source, tt.address, tt.policy.Mode(), err, tt.want)
		}
		rs, err := g.Records(id, Filter{})
		if err != nil || len(rs) != 1 || rs[0].Reason != tt.want || rs[0].Source != tt.source || rs[0].SessionID != id {
			t.Errorf("%s: records %+v %v", id, rs, err)
		}
	}
	if len(g.clients) != 0 {
		t.Errorf("%d clients are left", len(g.clients))
	}
}

// What the server refuses by a rule of its own is recorded, and nothing is
// resolved or dialled for it. The policy's own reason comes first.
func TestE205RefusedUndialled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(nil)
	limited := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})
	open := mustCompile(t, Spec{Mode: ModeUnrestricted})
	for i, tt := range []struct {
		address string
		policy  *Policy
		want    Record
	}{
		{"ok.example.com:443", limited, Record{Host: "ok.example.com", DestPort: 443, Reason: ReasonNameNotAllowed, Rule: "blocked_domains"}},
		{"no.example.com:443", limited, Record{Host: "no.example.com", DestPort: 443, Reason: ReasonNameNotAllowed}},
		{"ok.example.com:22", limited, Record{Host: "ok.example.com", DestPort: 22, Reason: ReasonPortNotAllowed}},
		{"203.0.113.7:80", limited, Record{DestAddress: "203.0.113.7", DestPort: 80, Reason: ReasonNoMapping}},
		{"any.example.com:80", open, Record{Host: "any.example.com", DestPort: 80, Reason: ReasonNameNotAllowed, Rule: "blocked_domains"}},
		{"203.0.113.7:80", open, Record{DestAddress: "203.0.113.7", DestPort: 80, Reason: ReasonNameNotAllowed, Rule: "blocked_domains"}},
		{"[2606:4700:4700::1111]:443", open, Record{DestAddress: "2606:4700:4700::1111", DestPort: 443, Reason: ReasonNameNotAllowed, Rule: "blocked_domains"}},
		{"bad name:80", open, Record{ClaimedHost: InvalidHost, DestPort: 80, Reason: ReasonNameNotAllowed}},
	} {
		id := fmt.Sprintf("refused%d", i)
		if err := g.Refuse(Client{ID: id, Source: SourceWebTool, Meta: Meta{SessionID: id}, Policy: tt.policy}, tt.address, "blocked_domains"); err != nil {
			t.Errorf("%s: %v", tt.address, err)
			continue
		}
		rs, err := g.Records(id, Filter{})
		if err != nil || len(rs) != 1 {
			t.Errorf("%s: records %+v %v", tt.address, rs, err)
			continue
		}
		got := Record{Host: rs[0].Host, ClaimedHost: rs[0].ClaimedHost, DestAddress: rs[0].DestAddress, DestPort: rs[0].DestPort, Reason: rs[0].Reason, Rule: rs[0].Rule}
		if got != tt.want || rs[0].Verdict != VerdictRefused || rs[0].Source != SourceWebTool || rs[0].DialedAddress != "" {
			t.Errorf("%s: %+v, want %+v", tt.address, rs[0], tt.want)
		}
	}
	if asked := w.resolver.questions(); len(asked) != 0 {
		t.Errorf("the resolver was asked for %q", asked)
	}
	if err := g.Refuse(Client{ID: "none", Source: SourceWebTool}, "ok.example.com:443", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a network: %v", err)
	}
}

// A client's connections are under the network's policy of the moment, opened,
// suspended or neither, and end with what allowed them.
func TestClientFollowsPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(nil)
	ctx := context.Background()
	client := Client{ID: "c", Source: SourceWebTool, Meta: Meta{SessionID: "c"}, Policy: mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com"}})}
	hc := http.Client{Transport: &http.Transport{DialContext: g.Dialer(client)}}
	get := func() error {
		res, err := hc.Get("http://ok.example.com/")
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	hc.CloseIdleConnections()
	b := w.open(g, "c", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "two.example.com"}})
	if rs, err := g.Records("c", Filter{}); err != nil || len(rs) != 1 || rs[0].BytesDown == 0 || rs[0].BytesUp == 0 || rs[0].Host != "ok.example.com" {
		t.Errorf("what came before the network: %+v %v", rs, err)
	}
	held := func() net.Conn {
		c, err := g.DialContext(ctx, client, "tcp", "ok.example.com:443")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ended := func(c net.Conn, when string) {
		t.Helper()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: still open", when)
		}
		b.wantReason(ReasonPolicyChanged)
	}
	c := held()
	if err := g.Suspend(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := get(); err != nil {
		t.Errorf("while suspended: %v", err)
	}
	hc.CloseIdleConnections()
	if err := g.Update(ctx, "c", mustCompile(t, Spec{Mode: ModeLimited})); err != nil {
		t.Fatal(err)
	}
	ended(c, "after tightening")
	if err := get(); dialReason(err) != ReasonNameNotAllowed {
		t.Errorf("after tightening: %v", err)
	}
	if _, err := g.Resume(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := g.Update(ctx, "c", client.Policy); err != nil {
		t.Fatal(err)
	}
	c = held()
	if err := g.Reload(Config{Resolver: w.resolver}); err != nil { // without the exemption
		t.Fatal(err)
	}
	ended(c, "after a reload")
	if err := g.Reload(Config{Resolver: w.resolver, Exempt: w.exempt}); err != nil {
		t.Fatal(err)
	}
	c = held()
	if err := g.Close(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("open after the session's end")
	}
	client.Policy = nil
	if _, err := g.DialContext(ctx, client, "tcp", "ok.example.com:443"); !errors.Is(err, ErrNotFound) {
		t.Errorf("without network and policy: %v", err)
	}
}
