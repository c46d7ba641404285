package egress

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func mustHost(t testing.TB, name string) Host {
	t.Helper()
	h, err := Canonical(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// testHost is a host for a table, of a name that is one.
func testHost(name string) Host {
	h, err := Canonical(name)
	if err != nil {
		panic(err)
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
			if _, got := p.Allows(SourceSandbox, mustHost(t, tt.host), port); got != tt.want {
				t.Errorf("%s: %q allow %s:%d: %v, want %v", tt.number, tt.entries, tt.host, port, got, tt.want)
			}
		}
		if _, ok := p.Allows(SourceSandbox, mustHost(t, tt.host), 8080); ok {
			t.Errorf("%s: port 8080 is open", tt.number)
		}
	}
}

func TestEndpointsAndModes(t *testing.T) {
	t.Parallel()
	spec := Spec{Mode: ModeLimited, AllowedHosts: []string{"*.example.com"}, Endpoints: []Endpoint{
		{Host: testHost("mcp.example.org"), Port: 8443, Rule: "mcp:one"},
		{Host: testHost("packages.example.org"), Rule: "registry:npm"},
		{Host: testHost("git.example.com"), Port: 22, Rule: "operator", Raw: true},
		{Host: testHost("x.example.com"), Port: 443, Rule: "operator", Raw: true},
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
	if !mustCompile(t, again).Equal(p) {
		t.Errorf("the policy's JSON is not its spec: %s", data)
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
		{Mode: ModeLimited, Endpoints: []Endpoint{{Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("a.example"), Port: 70000, Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("a.example"), Port: -1, Rule: "mcp:x"}}},
		{Mode: ModeLimited, Endpoints: []Endpoint{{Host: testHost("a.example")}}},
	} {
		if _, err := Compile(s); err == nil {
			t.Errorf("Compile(%+v): no error", s)
		}
	}
}

// Endpoints of stored policies are hosts, or the policy is refused.
func TestStoredEndpoints(t *testing.T) {
	t.Parallel()
	read := func(host string) (*Policy, error) {
		var s Spec
		if err := json.Unmarshal([]byte(`{"mode":"limited","endpoints":[{`+host+`"rule":"mcp:x"}]}`), &s); err != nil {
			return nil, err
		}
		return Compile(s)
	}
	for _, host := range []string{`"host":"*.example.com",`, `"host":"10.0.0.1",`, `"host":"",`, `"host":null,`, ``, `"host":"a b",`} {
		if _, err := read(host); err == nil {
			t.Errorf("%s was compiled", host)
		}
	}
	p, err := read(`"host":"MCP.example.com.",`) // as an older server may have written it
	if err != nil {
		t.Fatal(err)
	}
	if rule, ok := p.Allows(SourceMCP, mustHost(t, "mcp.example.com"), 443); !ok || rule != "mcp:x" {
		t.Errorf("%q %t", rule, ok)
	}
}

// A policy with more endpoints is a policy of its own, the same as if all of it
// had been compiled at once.
func TestPolicyWith(t *testing.T) {
	t.Parallel()
	spec := Spec{Mode: ModeLimited, AllowedHosts: []string{"a.example.com", "*.b.example.com"}, Endpoints: []Endpoint{{Host: testHost("m.example.com"), Rule: "mcp:m"}}}
	more := []Endpoint{{Host: testHost("a.example.com"), Port: 8443, Rule: "registry:npm"}, {Host: testHost("m.example.com"), Port: 8443, Rule: "registry:npm"}}
	other := []Endpoint{{Host: testHost("a.example.com"), Port: 9443, Rule: "registry:pip"}, {Host: testHost("m.example.com"), Port: 9443, Rule: "registry:pip"}}
	base := mustCompile(t, spec)
	with := func(endpoints []Endpoint) *Policy {
		t.Helper()
		p, err := base.With(endpoints...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := with(more), with(other)
	all := spec
	all.Endpoints = append(slices.Clone(spec.Endpoints), more...)
	if !first.Equal(mustCompile(t, all)) || !reflect.DeepEqual(first, mustCompile(t, all)) {
		t.Errorf("not what Compile makes of the same: %+v", first)
	}
	if first.Equal(base) || first.Equal(second) || !base.Equal(mustCompile(t, spec)) || !with(nil).Equal(base) {
		t.Error("policies are equal that are not, or the other way round")
	}
	for _, host := range []string{"a.example.com", "m.example.com"} {
		for port, want := range map[int]*Policy{8443: first, 9443: second} {
			for _, p := range []*Policy{base, first, second} {
				if _, ok := p.Allows(SourceSandbox, mustHost(t, host), port); ok != (p == want) || p.speaks(uint16(port)) != (p == want) {
					t.Errorf("%s:%d is open: %t", host, port, ok)
				}
			}
		}
	}
	if got := fmt.Sprint(first.exact); got != "[a.example.com m.example.com]" {
		t.Errorf("names with an address from the start: %s", got)
	}
	if _, ok := first.Allows(SourceWebTool, mustHost(t, "a.example.com"), 8443); ok {
		t.Error("a registry is open to a web tool")
	}
	if _, err := base.With(Endpoint{Host: testHost("a.example.com")}); err == nil {
		t.Error("an endpoint without a rule was taken")
	}
	none := mustCompile(t, Spec{Mode: ModeLimited})
	if !none.Equal(mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{}, Endpoints: []Endpoint{}})) || none.Equal(nil) || !(*Policy)(nil).Equal(nil) {
		t.Error("an empty list is not as none, or no policy is as an empty one")
	}
}

// E167: an entry twice, in any order, is the same policy.
func TestDuplicateEntries(t *testing.T) {
	t.Parallel()
	a := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"a.example", "*.b.example", "A.example."}})
	b := mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"*.b.example", "a.example"}})
	for _, host := range []string{"a.example", "b.example", "c.b.example", "x.a.example"} {
		_, x := a.Allows(SourceSandbox, mustHost(t, host), 443)
		_, y := b.Allows(SourceSandbox, mustHost(t, host), 443)
		if x != y {
			t.Errorf("%s: %v and %v", host, x, y)
		}
	}
	if len(a.exact) != 1 {
		t.Errorf("hosts: %v", a.exact)
	}
}

// E168: the operator's list wins.
func TestBlockList(t *testing.T) {
	t.Parallel()
	r, err := compileRules(Config{BlockHosts: []string{"bad.example.com", "*.worse.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"bad.example.com": true, "a.bad.example.com": false, "worse.example.com": false, "a.b.worse.example.com": true, "example.com": false,
	} {
		if got := r.blocked.has(mustHost(t, host)); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
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
	if _, ok := p.Allows(SourceSandbox, mustHost(t, "a.b.zone4999.example.org"), 443); !ok {
		t.Error("last wildcard does not match")
	}
	if _, ok := p.Allows(SourceSandbox, mustHost(t, "host5000.example.com"), 443); ok {
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
