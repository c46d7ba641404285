package egress

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Mode says how a policy treats names it does not list.
type Mode string

// The modes of a policy.
const (
	// ModeLimited: the listed hosts and endpoints, nothing else.
	ModeLimited Mode = "limited"
	// ModeUnrestricted: every public address, by name or by number.
	ModeUnrestricted Mode = "unrestricted"
	// ModeBuild: the listed endpoints only; a list of hosts is an error,
	// because what a build makes is shared by environments.
	ModeBuild Mode = "build"
	// ModeObserve: every well-formed name on every port, with the checks of
	// TLS and HTTP, no raw address. For learning from the records what a
	// program reaches.
	ModeObserve Mode = "observe"
)

// Endpoint is one host on one port that a policy opens besides its hosts.
type Endpoint struct {
	// Host is the host itself, never one below it. The zero Host is an error.
	Host Host `json:"host"`
	// Port is a TCP port; zero means 443 and 80.
	Port int `json:"port,omitempty"`
	// Rule is what records name as the reason, like "registry:npm". One that
	// begins with "mcp:" opens the endpoint to SourceMCP too. Empty is an error.
	Rule string `json:"rule"`
	// Raw opens the port for any protocol: the name alone authorises, and the
	// connection is made without waiting for the client's first bytes. For
	// protocols in which the server speaks first.
	Raw bool `json:"raw,omitempty"`
}

// Spec is a policy as it is written and stored. [Compile] makes a [Policy] of it,
// which is what everything else takes.
type Spec struct {
	// Mode says how names are treated that are not listed. Empty is an error.
	Mode Mode `json:"mode"`
	// AllowedHosts are entries as [ParseEntry] takes them. Nil and empty mean
	// the same: no host.
	AllowedHosts []string `json:"allowed_hosts,omitempty"`
	// Endpoints are opened in every mode. Nil and empty mean the same: none.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// maxExact bounds the names that have an address from the start.
const maxExact = 65536

// Policy is a compiled Spec: its entries are parsed, and deciding about a name
// takes a look-up for each of its labels. It is immutable and safe for concurrent
// use. A nil Policy allows nothing.
type Policy struct {
	spec      Spec
	hosts     nameIndex[[]grant] // of allowed_hosts; shared with the policies that With makes
	endpoints map[string][]grant // canonical host → what is open on it
	checked   map[uint16]bool    // ports on which TLS or HTTP is expected
	exact     []Host             // that have an address from the start, each once: of allowed_hosts, then of endpoints
}

// grant is one port of one entry. Port zero is every web port.
type grant struct {
	port uint16 // 0: 443 and 80
	rule string
	raw  bool
	from origin
}

// origin says where a grant comes from, for users that not all of them count for.
type origin int

const (
	fromHosts    origin = iota // allowed_hosts
	fromMCP                    // an endpoint whose rule begins with "mcp:"
	fromEndpoint               // any other endpoint
)

// counts tells whether grants of this origin hold for who asks: a web tool has
// the listed hosts only, a connection to an MCP server those and the MCP
// endpoints, sandboxes and builds have all.
func (o origin) counts(source string) bool {
	return o == fromHosts || source != SourceWebTool && (source != SourceMCP || o == fromMCP)
}

// Compile checks a Spec and makes the policy of it, wholly or not at all. It is
// where entries are parsed: who has a Policy has no need to look at them again.
func Compile(spec Spec) (*Policy, error) {
	switch spec.Mode {
	case ModeLimited, ModeUnrestricted, ModeBuild, ModeObserve:
	default:
		return nil, fmt.Errorf("unknown network mode %q", string(spec.Mode))
	}
	if spec.Mode == ModeBuild && len(spec.AllowedHosts) > 0 {
		return nil, errors.New("a build's network takes endpoints only, not allowed hosts")
	}
	p := &Policy{
		spec:  Spec{Mode: spec.Mode, AllowedHosts: slices.Clone(spec.AllowedHosts)},
		hosts: newNameIndex[[]grant](), endpoints: map[string][]grant{}, checked: map[uint16]bool{80: true, 443: true},
	}
	for i, raw := range spec.AllowedHosts {
		entry, err := ParseEntry(raw)
		if err != nil {
			return nil, fmt.Errorf("allowed_hosts[%d]: %w", i, err)
		}
		p.add(p.hosts.of(entry), entry, grant{rule: fmt.Sprintf("allowed_hosts[%d]", i)})
	}
	return p.With(spec.Endpoints...)
}

// With returns the policy that opens these endpoints as well, wholly or not at
// all. p is not changed, and nothing of it is parsed or compiled again.
func (p *Policy) With(more ...Endpoint) (*Policy, error) {
	next := &Policy{
		spec:      Spec{p.spec.Mode, p.spec.AllowedHosts, slices.Concat(p.spec.Endpoints, more)},
		hosts:     p.hosts,
		endpoints: maps.Clone(p.endpoints),
		checked:   maps.Clone(p.checked),
		exact:     slices.Clone(p.exact),
	}
	for i, e := range more {
		i += len(p.spec.Endpoints)
		switch {
		case e.Rule == "":
			return nil, fmt.Errorf("endpoint %d: no rule", i)
		case e.Host.IsZero():
			return nil, fmt.Errorf("endpoint %d (%s): no host", i, e.Rule)
		case e.Port < 0 || e.Port > 65535:
			return nil, fmt.Errorf("endpoint %d (%s): no such port: %d", i, e.Rule, e.Port)
		}
		if e.Port != 0 && !e.Raw {
			next.checked[uint16(e.Port)] = true
		}
		from := fromEndpoint
		if strings.HasPrefix(e.Rule, "mcp:") {
			from = fromMCP
		}
		next.add(next.endpoints, Entry{Host: e.Host}, grant{uint16(e.Port), e.Rule, e.Raw, from})
	}
	if len(next.exact) > maxExact {
		return nil, fmt.Errorf("more than %d hosts", maxExact)
	}
	return next, nil
}

// add opens a grant on an entry. into is the map of p that has such entries.
func (p *Policy) add(into map[string][]grant, e Entry, g grant) {
	if !e.Wildcard && p.hosts.exact[e.Host.name] == nil && p.endpoints[e.Host.name] == nil {
		p.exact = append(p.exact, e.Host)
	}
	if grants := into[e.Host.name]; !slices.Contains(grants, g) {
		into[e.Host.name] = append(slices.Clip(grants), g) // another policy may have the same grants
	}
}

// Spec returns what the policy was compiled from; compiling it again gives the
// same policy. The value is a copy.
func (p *Policy) Spec() Spec {
	return Spec{p.spec.Mode, slices.Clone(p.spec.AllowedHosts), slices.Clone(p.spec.Endpoints)}
}

// Equal tells whether two policies were compiled from the same Spec.
func (p *Policy) Equal(other *Policy) bool {
	if p == nil || other == nil {
		return p == other
	}
	return p.spec.Mode == other.spec.Mode && slices.Equal(p.spec.AllowedHosts, other.spec.AllowedHosts) && slices.Equal(p.spec.Endpoints, other.spec.Endpoints)
}

// MarshalJSON writes the Spec.
func (p *Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.spec) }

// Mode returns the policy's mode.
func (p *Policy) Mode() Mode { return p.spec.Mode }

// Allows tells whether the policy opens this host on this port to who asks
// (SourceSandbox and so on), and by which rule. What the operator says and the
// dial guard come on top.
func (p *Policy) Allows(source string, host Host, port int) (rule string, ok bool) {
	v := p.decide(host, uint16(port), source)
	return v.rule, v.reason == ReasonOK
}

// The rules of verdicts that no entry of a policy gave.
const (
	ruleUnrestricted = "unrestricted" // the mode
	ruleObserve      = "observe"      // the mode
	ruleOperator     = "operator"     // an open port or an exemption
)

// verdict is what a policy says about a name and a port.
type verdict struct {
	reason Reason
	rule   string
	raw    bool // dial without a protocol check
}

// names tells whether the name may have an address of its own.
func (p *Policy) names(host Host) bool {
	if p == nil || host.IsZero() {
		return false
	}
	if p.spec.Mode == ModeUnrestricted || p.spec.Mode == ModeObserve {
		return true
	}
	return !p.each(host, func([]grant) bool { return false })
}

// lists tells whether allowed_hosts names the host.
func (p *Policy) lists(host Host) bool {
	return !p.hosts.each(host, func([]grant) bool { return false })
}

// decide gives the policy's verdict on a name and a port for who asks; see
// [rules.decide] for what the operator makes of it. Where several entries open
// the port, the first written counts, and one that asks for the protocol check
// wins over one that does not.
func (p *Policy) decide(host Host, port uint16, source string) verdict {
	if p == nil || host.IsZero() {
		return verdict{reason: ReasonNameNotAllowed}
	}
	named, best := false, verdict{reason: ReasonPortNotAllowed}
	p.each(host, func(grants []grant) bool {
		for _, g := range grants {
			if !g.from.counts(source) {
				continue
			}
			named = true
			open := g.port == port || g.port == 0 && (port == 80 || port == 443)
			if open && (best.reason != ReasonOK || best.raw && !g.raw) {
				best = verdict{ReasonOK, g.rule, g.raw}
			}
		}
		return true
	})
	switch {
	case p.spec.Mode == ModeUnrestricted:
		return verdict{ReasonOK, cmp.Or(best.rule, ruleUnrestricted), true}
	case best.reason == ReasonOK:
		return best
	case p.spec.Mode == ModeObserve:
		return verdict{ReasonOK, ruleObserve, false}
	case named:
		return verdict{reason: ReasonPortNotAllowed}
	}
	return verdict{reason: ReasonNameNotAllowed}
}

// each calls f with the grants that hold for the host: those of the host itself,
// of allowed_hosts first, and then those of wildcards, until f returns false. It
// tells whether f never did.
func (p *Policy) each(host Host, f func([]grant) bool) bool {
	for _, exact := range []map[string][]grant{p.hosts.exact, p.endpoints} {
		if grants, ok := exact[host.name]; ok && !f(grants) {
			return false
		}
	}
	return p.hosts.above(host, f)
}

// speaks tells whether a refused client on this port is read for its first
// bytes, so that it can be answered in its protocol.
func (p *Policy) speaks(port uint16) bool {
	if port == 80 || port == 443 {
		return true
	}
	return p != nil && (p.checked[port] || p.spec.Mode == ModeObserve)
}
