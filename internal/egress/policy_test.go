package egress

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustHost(t testing.TB, name string) Host {
	t.Helper()
	h, err := Canonical(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func mustCompile(t testing.TB, s Spec) *Policy {
	t.Helper()
	p, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMatching(t *testing.T) {
	t.Parallel()
	ten := strings.Repeat("x.", 10) + "example.com"
	tests := []struct {
		number  string
		entries []string
		host    string
		want    bool
	}{
		{"E150", []string{"example.com"}, "a.example.com", false},
		{"E150", []string{"example.com"}, "example.com", true},
		{"E151", []string{"example.com"}, "notexample.com", false},
		{"E151", []string{"example.com"}, "example.com.evil.test", false},
		{"E151", []string{"example.com"}, "xexample.com", false},
		{"E152", []string{"*.example.com"}, "a.example.com", true},
		{"E152", []string{"*.example.com"}, "a.b.example.com", true},
		{"E152", []string{"*.example.com"}, ten, true},
		{"E153", []string{"*.example.com"}, "example.com", false},
		{"E154", []string{"*.example.com"}, "notexample.com", false},
		{"E155", []string{"*.example.com", "example.com"}, "example.com", true},
		{"E155", []string{"*.example.com", "example.com"}, "a.example.com", true},
		{"E156", []string{"EXAMPLE.com"}, "eXample.COM", true},
		{"E160", []string{"example.com."}, "example.com", true},
		{"E161", []string{"b\u00fccher.example"}, "xn--bcher-kva.example", true},
		{"E163", nil, "example.com", false},
		{"E163", []string{}, "localhost", false},
	}
	for _, tt := range tests {
		p := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: tt.entries})
		for _, port := range []int{80, 443} {
			if _, got := p.Allows(mustHost(t, tt.host), port); got != tt.want {
				t.Errorf("%s: %q allow %s:%d: %v, want %v", tt.number, tt.entries, tt.host, port, got, tt.want)
			}
		}
		if _, ok := p.Allows(mustHost(t, tt.host), 8080); ok {
			t.Errorf("%s: port 8080 is open", tt.number)
		}
	}
}

func TestEndpointsAndModes(t *testing.T) {
	t.Parallel()
	spec := Spec{Mode: ModeLimited, AllowedHosts: []string{"*.example.com"}, Endpoints: []Endpoint{
		{Host: "mcp.example.org", Port: 8443, Rule: "mcp:one"},
		{Host: "packages.example.org", Rule: "registry:npm"},
		{Host: "git.example.com", Port: 22, Rule: "operator", Raw: true},
		{Host: "x.example.com", Port: 443, Rule: "operator", Raw: true},
	}}
	p := mustCompile(t, spec)
	tests := []struct {
		host string
		port int
		rule string
		raw  bool
		want Reason
	}{
		{"mcp.example.org", 8443, "mcp:one", false, ReasonOK}, // E199
		{"mcp.example.org", 443, "", false, ReasonPortNotAllowed},
		{"a.mcp.example.org", 8443, "", false, ReasonNameNotAllowed},
		{"packages.example.org", 443, "registry:npm", false, ReasonOK}, // E200
		{"packages.example.org", 80, "registry:npm", false, ReasonOK},
		{"packages.example.org", 22, "", false, ReasonPortNotAllowed},
		{"git.example.com", 22, "operator", true, ReasonOK}, // E204
		{"git.example.com", 443, "allowed_hosts[0]", false, ReasonOK},
		{"other.example.com", 22, "", false, ReasonPortNotAllowed},
		{"x.example.com", 443, "allowed_hosts[0]", false, ReasonOK}, // the stricter wins
	}
	for _, tt := range tests {
		got := p.decide(mustHost(t, tt.host), uint16(tt.port), SourceSandbox)
		if want := (verdict{tt.want, tt.rule, tt.raw}); got != want {
			t.Errorf("%s:%d: %+v, want %+v", tt.host, tt.port, got, want)
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again Spec
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec, again); diff != "" {
		t.Errorf("the policy's JSON is not its spec:\n%s", diff)
	}

	u := mustCompile(t, Spec{Mode: ModeUnrestricted})
	if got := u.decide(mustHost(t, "any.example"), 5432, SourceSandbox); got != (verdict{ReasonOK, "unrestricted", true}) {
		t.Errorf("unrestricted: %+v", got)
	}
	o := mustCompile(t, Spec{Mode: ModeObserve})
	if got := o.decide(mustHost(t, "any.example"), 8081, SourceSandbox); got != (verdict{ReasonOK, "observe", false}) {
		t.Errorf("observe: %+v", got)
	}
	var none *Policy
	if got := none.decide(mustHost(t, "any.example"), 443, SourceSandbox); got.reason != ReasonNameNotAllowed || none.names(mustHost(t, "any.example")) {
		t.Errorf("no policy: %+v", got)
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []Spec{
		{},
		{Mode: "open"},
		{Mode: ModeLimited, AllowedHosts: []string{"ok.example", "*"}},
		{Mode: ModeBuild, AllowedHosts: []string{"ok.example"}}, // E272
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: "*.example.com", Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: "10.0.0.1", Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: "a.example", Port: 70000, Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: "a.example", Port: -1, Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: "a.example"}}},
	} {
		if _, err := Compile(s); err == nil {
			t.Errorf("Compile(%+v): no error", s)
		}
	}
}

// E167: an entry twice, in any order, is the same policy.
func TestDuplicateEntries(t *testing.T) {
	t.Parallel()
	a := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"a.example", "*.b.example", "A.example."}})
	b := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"*.b.example", "a.example"}})
	for _, host := range []string{"a.example", "b.example", "c.b.example", "x.a.example"} {
		_, x := a.Allows(mustHost(t, host), 443)
		_, y := b.Allows(mustHost(t, host), 443)
		if x != y {
			t.Errorf("%s: %v and %v", host, x, y)
		}
	}
	if len(a.hosts) != 1 {
		t.Errorf("hosts: %v", a.hosts)
	}
}

// E168: the operator's list wins.
func TestBlockList(t *testing.T) {
	t.Parallel()
	b, err := newBlockList([]string{"bad.example.com", "*.worse.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"bad.example.com": true, "a.bad.example.com": false, "worse.example.com": false, "a.b.worse.example.com": true, "example.com": false,
	} {
		if got := b.has(mustHost(t, host)); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
	if _, err := newBlockList([]string{"https://x"}); err == nil {
		t.Error("a URL was accepted")
	}
}

// bigSpec is a policy of ten thousand entries, E166.
func bigSpec() Spec {
	s := Spec{Mode: ModeLimited}
	for i := range 5000 {
		s.AllowedHosts = append(s.AllowedHosts, fmt.Sprintf("host%d.example.com", i), fmt.Sprintf("*.zone%d.example.org", i))
	}
	return s
}

func TestE166ManyEntries(t *testing.T) {
	t.Parallel()
	p := mustCompile(t, bigSpec())
	if _, ok := p.Allows(mustHost(t, "a.b.zone4999.example.org"), 443); !ok {
		t.Error("last wildcard does not match")
	}
	if _, ok := p.Allows(mustHost(t, "host5000.example.com"), 443); ok {
		t.Error("an unlisted host matches")
	}
}

func BenchmarkCompile10000(b *testing.B) {
	s := bigSpec()
	for b.Loop() {
		if _, err := Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecide10000(b *testing.B) {
	p := mustCompile(b, bigSpec())
	h := mustHost(b, "a.b.c.d.zone2500.example.org")
	for b.Loop() {
		p.decide(h, 443, SourceSandbox)
	}
}
