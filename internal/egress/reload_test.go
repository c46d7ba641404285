package egress

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The operator's settings are swapped whole, and everything open is decided
// again: connections, requests, flows, and a hello that is half read.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com", "two.example.com")
	port, _ := w.echo()
	w.know("udp.example.com", port)
	g := w.gateway(nil)
	b := w.open(g, "u", Spec{Mode: ModeUnrestricted})
	l := w.open(g, "l", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "two.example.com"}})
	settings := func() Config { return Config{Resolver: w.resolver, Exempt: w.exempt} }
	gone := func(read func() error, what string, at *box) {
		t.Helper()
		if err := read(); err == nil {
			t.Errorf("%s: still open", what)
		}
		if r := at.wantReason(ReasonPolicyChanged); r.Verdict != VerdictRefused {
			t.Errorf("%s: %+v", what, r)
		}
	}

	bad := settings()
	bad.BlockHosts = []string{"https://x"}
	if err := g.Reload(bad); err == nil {
		t.Error("an invalid entry was accepted")
	}
	// A hello that is half read when its host is blocked (E196).
	half := l.to("ok.example.com", 443)
	hello := withSNI(t, "ok.example.com")
	if _, err := half.Write(hello[:len(hello)/2]); err != nil {
		t.Fatal(err)
	}
	open, err := l.tls(l.to("two.example.com", 443), "two.example.com")
	if err != nil {
		t.Fatal(err)
	}
	blocked := settings()
	blocked.BlockHosts = []string{"ok.example.com"}
	if err := g.Reload(blocked); err != nil {
		t.Fatal(err)
	}
	gone(func() error { _, err := half.Read(make([]byte, 1)); return err }, "a half-read hello", l)
	if n := l.counts(); n[ReasonPolicyChanged] != 1 || len(n) != 2 {
		t.Errorf("records %v", n)
	}
	if code, _, _, err := l.get("https://two.example.com/"); err != nil || code != 200 {
		t.Errorf("another host: %d %v", code, err)
	}
	if code, body, _, err := l.get("http://ok.example.com/"); err != nil || code != 403 || !strings.Contains(body, "ok.example.com") {
		t.Errorf("the blocked host: %d %q %v", code, body, err)
	}

	// Without the exemption its address is not public any more; a range that is
	// denied is none.
	flow, err := b.dial("udp", fmt.Sprintf("%s:%d", b.resolve("udp.example.com"), port))
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(flow, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(Config{Resolver: w.resolver, DenyCIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}); err != nil {
		t.Fatal(err)
	}
	gone(func() error { _, err := io.ReadAll(open); return err }, "an open connection", l)
	gone(func() error { return exchange(flow, []byte("x")) }, "a flow", b)
	if err := exchange(flow, []byte("x")); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the flow again: %v", err)
	}
	if err := g.Reload(settings()); err != nil {
		t.Fatal(err)
	}
	if err := exchange(flow, []byte("x")); err != nil {
		t.Errorf("the flow, exempted again: %v", err)
	}
}

// The operator's ports: opened on hosts that the environment lists, blocked
// everywhere, and port 25 where an exemption names it (E204, E256, E261).
func TestOperatorPorts(t *testing.T) {
	t.Parallel()
	r, err := compileRules(Config{
		BlockPorts: []int{6667}, BlockHosts: []string{"bad.example.com"},
		OpenPorts: []OpenPort{{"git.example.com", []int{22}}, {"*.db.example.com", []int{5432}}, {"other.example.net", []int{22}}, {"reg.example.com", []int{22}}},
		Exempt:    []Exemption{{Host: "mail.example.com", CIDR: netip.MustParsePrefix("10.0.0.0/8"), Ports: []int{25}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	limited := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"*.example.com"}, Endpoints: []Endpoint{{Host: testHost("other.example.net"), Rule: "registry:npm"}}})
	build := mustCompile(t, Spec{Mode: ModeBuild, Endpoints: []Endpoint{{Host: testHost("reg.example.com"), Rule: "registry:npm"}}})
	open := mustCompile(t, Spec{Mode: ModeUnrestricted})
	for _, tt := range []struct {
		policy *Policy
		host   string
		port   uint16
		want   verdict
	}{
		{limited, "git.example.com", 22, verdict{ReasonOK, "operator", true}},
		{limited, "git.example.com", 23, verdict{reason: ReasonPortNotAllowed}},
		{limited, "two.example.com", 22, verdict{reason: ReasonPortNotAllowed}},
		{limited, "a.db.example.com", 5432, verdict{ReasonOK, "operator", true}},
		{limited, "db.example.com", 5432, verdict{reason: ReasonPortNotAllowed}},
		{limited, "other.example.net", 22, verdict{reason: ReasonPortNotAllowed}}, // not listed by the environment
		{limited, "mail.example.com", 25, verdict{reason: ReasonPortNotAllowed}},
		{limited, "bad.example.com", 443, verdict{reason: ReasonBlocklisted}},
		{build, "reg.example.com", 22, verdict{reason: ReasonPortNotAllowed}},
		{open, "any.example.com", 6667, verdict{reason: ReasonBlocklisted}},
		{open, "any.example.com", 25, verdict{reason: ReasonPortNotAllowed}},
		{open, "mail.example.com", 25, verdict{ReasonOK, "operator", true}},
		{open, "any.example.com", 465, verdict{ReasonOK, "unrestricted", true}},
	} {
		if got := r.decide(tt.policy, mustHost(t, tt.host), tt.port, SourceSandbox); got != tt.want {
			t.Errorf("%s %s:%d: %+v, want %+v", tt.policy.Mode(), tt.host, tt.port, got, tt.want)
		}
	}
	if got := r.decideAddress(open, 6667); got.reason != ReasonBlocklisted {
		t.Errorf("a blocked port by address: %+v", got)
	}
}

// Every field of a record is there, and null where there is nothing.
func TestRecordJSON(t *testing.T) {
	t.Parallel()
	in := Record{ID: "egr_00000000000001", Protocol: "dns", Verdict: VerdictRefused, Reason: ReasonNameLimit, Source: SourceSandbox, Count: 1}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"host", "claimed_host", "dest_address", "dest_port", "dialed_address", "rule"} {
		if !strings.Contains(string(data), `"`+field+`":null`) {
			t.Errorf("%s is not null in %s", field, data)
		}
	}
	for _, field := range []string{"id", "time", "workspace_id", "session_id", "environment_id", "source", "generation", "protocol", "verdict", "reason", "bytes_up", "bytes_down", "duration_ms", "ech", "count"} {
		if strings.Count(string(data), `"`+field+`":`) != 1 {
			t.Errorf("%s is not once in %s", field, data)
		}
	}
	full := in
	full.Host, full.DestPort, full.Rule = "a.example.com", 443, "operator"
	for _, want := range []Record{in, full} {
		var got Record
		if data, err = json.Marshal(want); err != nil || json.Unmarshal(data, &got) != nil || got != want {
			t.Errorf("%s became %+v (%v)", data, got, err)
		}
	}
}

// Filters: newest first, stable cursors both ways, a verdict (E288).
func TestRecordCursors(t *testing.T) {
	t.Parallel()
	j := &journal{}
	g := &Gateway{log: discardLogger()}
	st := &state{id: "x", journal: j}
	add := func(reason Reason, port int) string {
		return g.record(st, Record{Reason: reason, Host: "a.example.com", DestPort: port, Protocol: "tcp"}).ID
	}
	var ids []string
	for i := range 6 {
		reason := ReasonOK
		if i%2 == 1 {
			reason = ReasonPortNotAllowed
		}
		ids = append(ids, add(reason, 1+i))
	}
	first := j.list(Filter{Limit: 2})
	add(ReasonOK, 99)
	second := j.list(Filter{Limit: 2, Before: first[1].ID})
	if first[0].ID != ids[5] || second[0].ID != ids[3] || second[1].ID != ids[2] {
		t.Errorf("pages %+v %+v", first, second)
	}
	if got := j.list(Filter{After: ids[4]}); len(got) != 2 || got[1].ID != ids[5] {
		t.Errorf("after: %+v", got)
	}
	if got := j.list(Filter{Verdict: string(VerdictRefused)}); len(got) != 3 || got[0].ID != ids[5] {
		t.Errorf("refused: %+v", got)
	}
	for id, want := range map[string]bool{ids[0]: true, "": false, "r1": false, "egr_0000000000000G": false, ids[0] + "0": false} {
		if IsRecordID(id) != want {
			t.Errorf("%q", id)
		}
	}
}

// Everything that is wrong with the operator's settings is said at once, by the
// names that they have in the server's configuration.
func TestValidate(t *testing.T) {
	t.Parallel()
	at := netip.MustParsePrefix("10.1.2.0/24")
	err := Config{
		DenyCIDRs: []netip.Prefix{at, {}}, BlockHosts: []string{"a.example.com", "https://x"}, BlockPorts: []int{0, 6667, 70000},
		OpenPorts: []OpenPort{{"a.example.com", []int{22, 443, 25, 0}}, {"10.0.0.1", []int{22}}, {"a.example.com", nil}},
		Exempt:    []Exemption{{"a b", at, []int{80, -1}}, {"a.example.com", netip.Prefix{}, nil}, {"a.example.com", at, nil}},
	}.Validate()
	if err == nil {
		t.Fatal("nothing is wrong")
	}
	want := []string{
		"egress.deny_cidrs[1]: not a range like 203.0.113.0/24",
		"egress.block_hosts[1]: `allowed_hosts` entry \"https://x\" contains a URL scheme.",
		"egress.block_ports[0]: 0 is not a port",
		"egress.block_ports[2]: 70000 is not a port",
		"egress.open_ports[0]: 443 is open on allowed hosts, and what speaks there is checked",
		"egress.open_ports[0]: 25 takes an exemption of the host and its address",
		"egress.open_ports[0]: 0 is not a port",
		"egress.open_ports[1]: `allowed_hosts` entry \"10.0.0.1\" contains an IP address.",
		"egress.open_ports[2]: no port",
		"egress.exempt[0]: host \"a b\": the name has a character outside letters, digits, '-', '_' and '.'",
		"egress.exempt[0]: ports: -1 is not a port",
		"egress.exempt[1]: cidr: not a range like 10.1.2.0/24",
	}
	got := strings.Split(err.Error(), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(got), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got %s\nwant %s", got[i], want[i])
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("without settings: %v", err)
	}
}

// E256: port 25 takes an exemption that names it, whatever opens it otherwise,
// and an exemption holds for its host at its addresses only.
func TestE256Port25(t *testing.T) {
	t.Parallel()
	g := testGuard(t, &fakeResolver{}, func(c *Config) {
		c.Exempt = []Exemption{{"mail.example.com", netip.MustParsePrefix("10.1.2.0/24"), []int{25}}, {"web.example.com", netip.MustParsePrefix("10.1.2.0/24"), nil}}
	})
	r := g.rules.Load()
	endpoints := []Endpoint{{Host: testHost("mail.example.com"), Port: 25, Rule: "mcp:mail"}, {Host: testHost("any.example.com"), Port: 25, Rule: "mcp:any", Raw: true}}
	closed := verdict{reason: ReasonPortNotAllowed}
	for _, tt := range []struct {
		host string
		spec Spec
		want verdict
	}{
		{"any.example.com", Spec{Mode: ModeUnrestricted}, closed},
		{"web.example.com", Spec{Mode: ModeUnrestricted}, closed}, // exempted on other ports
		{"mail.example.com", Spec{Mode: ModeUnrestricted}, verdict{ReasonOK, "operator", true}},
		{"any.example.com", Spec{Mode: ModeUnrestricted, Endpoints: endpoints}, closed},
		{"any.example.com", Spec{Mode: ModeObserve}, closed},
		{"mail.example.com", Spec{Mode: ModeObserve}, closed},
		{"any.example.com", Spec{Mode: ModeLimited, AllowedHosts: []string{"*.example.com"}}, closed},
		{"mail.example.com", Spec{Mode: ModeLimited, AllowedHosts: []string{"*.example.com"}}, closed},
		{"any.example.com", Spec{Mode: ModeLimited, Endpoints: endpoints}, closed},
		{"mail.example.com", Spec{Mode: ModeLimited, Endpoints: endpoints}, verdict{ReasonOK, "mcp:mail", false}},
		{"any.example.com", Spec{Mode: ModeBuild, Endpoints: endpoints}, closed},
	} {
		if got := r.decide(mustCompile(t, tt.spec), mustHost(t, tt.host), 25, SourceSandbox); got != tt.want {
			t.Errorf("%s under %s with %d endpoints: %+v, want %+v", tt.host, tt.spec.Mode, len(tt.spec.Endpoints), got, tt.want)
		}
	}
	if got := r.decideAddress(mustCompile(t, Spec{Mode: ModeUnrestricted}), 25); got != closed {
		t.Errorf("by address: %+v", got)
	}
	for _, tt := range []struct {
		host, addr string
		want       bool
	}{{"mail.example.com", "10.1.2.3", true}, {"mail.example.com", "203.0.113.7", false}, {"web.example.com", "10.1.2.3", false}, {"any.example.com", "203.0.113.7", false}} {
		if err := g.check(mustHost(t, tt.host), netip.MustParseAddr(tt.addr), 25); (err == nil) != tt.want || err != nil && dialReason(err) != ReasonPortNotAllowed {
			t.Errorf("%s at %s: %v", tt.host, tt.addr, err)
		}
	}
	if err := g.check(Host{}, netip.MustParseAddr("203.0.113.7"), 25); dialReason(err) != ReasonPortNotAllowed {
		t.Errorf("a bare address: %v", err)
	}
	if err := g.check(mustHost(t, "mail.example.com"), netip.Addr{}, 25); dialReason(err) != ReasonAddressNotPublic {
		t.Errorf("no address: %v", err)
	}
}
