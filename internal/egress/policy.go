package egress

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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
	// Host is a host name; no wildcard, no IP address.
	Host string `json:"host"`
	// Port; zero means 443 and 80.
	Port int `json:"port,omitempty"`
	// Rule is what records name as the reason, like "registry:npm".
	Rule string `json:"rule"`
	// Raw opens the port for any protocol: the name alone authorises, and the
	// connection is made without waiting for the client's first bytes. For
	// protocols in which the server speaks first.
	Raw bool `json:"raw,omitempty"`
}

// Spec is a policy as it is written and stored.
type Spec struct {
	Mode Mode `json:"mode"`
	// AllowedHosts are entries as [ParseEntry] takes them. Nil and empty mean
	// the same: no host.
	AllowedHosts []string `json:"allowed_hosts,omitempty"`
	// Endpoints are opened in every mode.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// maxExact bounds the names that have an address from the start.
const maxExact = 65536

// Policy is a compiled Spec. It is immutable and safe for concurrent use. A nil
// Policy allows nothing.
type Policy struct {
	spec     Spec
	exact    map[string][]grant // canonical host → what is open on it
	wildcard map[string][]grant // canonical base → what is open below it
	checked  map[uint16]bool    // ports on which TLS or HTTP is expected
	hosts    []Host             // the exact hosts, in order of the spec
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

// Compile checks a Spec and makes the policy of it, wholly or not at all.
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
		spec:     Spec{spec.Mode, slices.Clone(spec.AllowedHosts), slices.Clone(spec.Endpoints)},
		exact:    map[string][]grant{},
		wildcard: map[string][]grant{},
		checked:  map[uint16]bool{80: true, 443: true},
	}
	for i, raw := range spec.AllowedHosts {
		entry, err := ParseEntry(raw)
		if err != nil {
			return nil, fmt.Errorf("allowed_hosts[%d]: %w", i, err)
		}
		p.add(entry, grant{rule: fmt.Sprintf("allowed_hosts[%d]", i)})
	}
	for i, e := range spec.Endpoints {
		host, err := Canonical(e.Host)
		if err != nil {
			return nil, fmt.Errorf("endpoint %d (%s): %w", i, e.Rule, err)
		}
		if e.Port < 0 || e.Port > 65535 {
			return nil, fmt.Errorf("endpoint %d (%s): no such port: %d", i, e.Rule, e.Port)
		}
		if e.Rule == "" {
			return nil, fmt.Errorf("endpoint %d: no rule", i)
		}
		if e.Port != 0 && !e.Raw {
			p.checked[uint16(e.Port)] = true
		}
		from := fromEndpoint
		if strings.HasPrefix(e.Rule, "mcp:") {
			from = fromMCP
		}
		p.add(Entry{Host: host}, grant{uint16(e.Port), e.Rule, e.Raw, from})
	}
	if len(p.exact) > maxExact {
		return nil, fmt.Errorf("more than %d hosts", maxExact)
	}
	return p, nil
}

func (p *Policy) add(e Entry, g grant) {
	into := p.exact
	if e.Wildcard {
		into = p.wildcard
	} else if _, seen := into[e.Host.name]; !seen {
		p.hosts = append(p.hosts, e.Host)
	}
	if !slices.Contains(into[e.Host.name], g) {
		into[e.Host.name] = append(into[e.Host.name], g)
	}
}

// Spec returns what the policy was compiled from; compiling it again gives the
// same policy. The value is a copy.
func (p *Policy) Spec() Spec {
	return Spec{p.spec.Mode, slices.Clone(p.spec.AllowedHosts), slices.Clone(p.spec.Endpoints)}
}

// MarshalJSON writes the Spec.
func (p *Policy) MarshalJSON() ([]byte, error) { return json.Marshal(p.spec) }

// Mode returns the policy's mode.
func (p *Policy) Mode() Mode { return p.spec.Mode }

// Allows tells whether the policy opens this host on this port, and by which
// rule. The gateway's block list and the dial guard come on top.
func (p *Policy) Allows(host Host, port int) (rule string, ok bool) {
	v := p.decide(host, uint16(port), SourceSandbox)
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
	found := false
	p.each(host, func([]grant) bool { found = true; return false })
	return found
}

// lists tells whether allowed_hosts names the host.
func (p *Policy) lists(host Host) bool {
	found := false
	p.each(host, func(grants []grant) bool {
		found = slices.ContainsFunc(grants, func(g grant) bool { return g.from == fromHosts })
		return !found
	})
	return found
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

// each calls f with the grants of the host itself and then of every wildcard
// above it, walking label boundaries, until f returns false.
func (p *Policy) each(host Host, f func([]grant) bool) {
	if g, ok := p.exact[host.name]; ok && !f(g) {
		return
	}
	for name := host.name; ; {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return
		}
		if g, ok := p.wildcard[parent]; ok && !f(g) {
			return
		}
		name = parent
	}
}

// speaks tells whether a refused client on this port is read for its first
// bytes, so that it can be answered in its protocol.
func (p *Policy) speaks(port uint16) bool {
	if port == 80 || port == 443 {
		return true
	}
	return p != nil && (p.checked[port] || p.spec.Mode == ModeObserve)
}

// blockList is the operator's list of names that no policy opens.
type blockList struct{ exact, wildcard map[string]bool }

func newBlockList(entries []string) (blockList, error) {
	b := blockList{map[string]bool{}, map[string]bool{}}
	for _, raw := range entries {
		e, err := ParseEntry(raw)
		if err != nil {
			return b, fmt.Errorf("block list: %w", err)
		}
		if e.Wildcard {
			b.wildcard[e.Host.name] = true
		} else {
			b.exact[e.Host.name] = true
		}
	}
	return b, nil
}

func (b blockList) has(host Host) bool {
	if b.exact[host.name] {
		return true
	}
	for name := host.name; ; {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return false
		}
		if b.wildcard[parent] {
			return true
		}
		name = parent
	}
}
