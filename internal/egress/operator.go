package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// OpenPort is a port that the operator opens, for any protocol, on a host that
// an environment allows: 22 for git, 5432 for a database. The name alone
// authorises there.
type OpenPort struct {
	// Host is an entry as [ParseEntry] takes it.
	Host string
	// Ports are TCP ports, 1 to 65535, without 80 and 443, which are open and
	// checked, and without 25, which takes an exemption. Empty is an error.
	Ports []int
}

// rules are the operator's settings, compiled: what holds for every network,
// whatever its policy says. They are immutable; a reload makes new ones.
type rules struct {
	refused      ranges // built in, and the operator's
	exempt       []exemption
	blocked      blockList
	blockedPorts map[uint16]bool
	open         []openPort
	allowECH     bool
	resolver     Resolver
}

type exemption struct {
	host  Host
	cidr  netip.Prefix
	ports []int
}

type openPort struct {
	entry Entry
	ports []int
}

// Validate checks the operator's settings, which are those that [Gateway.Reload]
// takes, and returns everything that is wrong with them. Each problem begins with
// the name of the setting as the configuration of the server has it, like
// "egress.open_ports[0]".
func (c Config) Validate() error {
	_, err := compileRules(c)
	return err
}

// compileRules makes the rules of the operator's part of a Config, wholly or not
// at all. The error joins all problems; see [Config.Validate].
func compileRules(c Config) (*rules, error) {
	var errs []error
	bad := func(setting string, i int, format string, args ...any) {
		errs = append(errs, fmt.Errorf("egress.%s[%d]: "+format, append([]any{setting, i}, args...)...))
	}
	r := &rules{
		refused:      append(ranges(notPublic()), c.DenyCIDRs...),
		blocked:      blockList{newNameIndex[bool]()},
		blockedPorts: map[uint16]bool{},
		allowECH:     c.AllowECH,
		resolver:     c.Resolver,
	}
	if r.resolver == nil {
		r.resolver = &net.Resolver{PreferGo: true}
	}
	for i, cidr := range c.DenyCIDRs {
		if !cidr.IsValid() {
			bad("deny_cidrs", i, "not a range like 203.0.113.0/24")
		}
	}
	for i, raw := range c.BlockHosts {
		entry, err := ParseEntry(raw)
		if err != nil {
			bad("block_hosts", i, "%w", err)
			continue
		}
		r.blocked.of(entry)[entry.Host.name] = true
	}
	for i, p := range c.BlockPorts {
		if !isPort(p) {
			bad("block_ports", i, "%d is not a port", p)
		}
		r.blockedPorts[uint16(p)] = true
	}
	for i, o := range c.OpenPorts {
		entry, err := ParseEntry(o.Host)
		if err != nil {
			bad("open_ports", i, "%w", err)
		}
		if len(o.Ports) == 0 {
			bad("open_ports", i, "no port")
		}
		for _, p := range o.Ports {
			switch {
			case !isPort(p):
				bad("open_ports", i, "%d is not a port", p)
			case p == 80 || p == 443:
				bad("open_ports", i, "%d is open on allowed hosts, and what speaks there is checked", p)
			case r.mailRefused(Host{}, netip.Addr{}, uint16(p)):
				bad("open_ports", i, "%d takes an exemption of the host and its address", p)
			}
		}
		r.open = append(r.open, openPort{entry, slices.Clone(o.Ports)})
	}
	for i, e := range c.Exempt {
		host, err := Canonical(e.Host)
		if err != nil {
			bad("exempt", i, "host %q: %w", e.Host, err)
		}
		if !e.CIDR.IsValid() {
			bad("exempt", i, "cidr: not a range like 10.1.2.0/24")
		}
		for _, p := range e.Ports {
			if !isPort(p) {
				bad("exempt", i, "ports: %d is not a port", p)
			}
		}
		ports := slices.Clone(e.Ports)
		if len(ports) == 0 {
			ports = []int{80, 443}
		}
		r.exempt = append(r.exempt, exemption{host, e.CIDR.Masked(), ports})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

func isPort(p int) bool { return p >= 1 && p <= 65535 }

// exempts tells whether the host may be at this address on this port.
func (r *rules) exempts(host Host, addr netip.Addr, port uint16) bool {
	return slices.ContainsFunc(r.exempt, func(e exemption) bool {
		return e.host == host && e.cidr.Contains(addr) && slices.Contains(e.ports, int(port))
	})
}

// mailPort is refused wherever no exemption names it: a machine that sends mail
// for strangers ends on block lists.
const mailPort = 25

// mailRefused is where port 25 is decided: it tells whether the port is 25 and no
// exemption of the host opens it at the address. The zero Addr stands for an
// address that is not known yet: then any exemption of the host counts.
func (r *rules) mailRefused(host Host, addr netip.Addr, port uint16) bool {
	return port == mailPort && !slices.ContainsFunc(r.exempt, func(e exemption) bool {
		return e.host == host && slices.Contains(e.ports, mailPort) && (!addr.IsValid() || e.cidr.Contains(addr))
	})
}

// opens tells whether the operator opened the port on the host.
func (r *rules) opens(host Host, port uint16) bool {
	return slices.ContainsFunc(r.open, func(o openPort) bool {
		return o.entry.matches(host) && slices.Contains(o.ports, int(port))
	})
}

// decide says what a policy and the operator together make of a name and a
// port. Every user of a policy asks here.
func (r *rules) decide(p *Policy, host Host, port uint16, source string) verdict {
	if r.blocked.has(host) || r.blockedPorts[port] {
		return verdict{reason: ReasonBlocklisted}
	}
	v := p.decide(host, port, source)
	switch {
	case v.reason == ReasonPortNotAllowed && p.Mode() == ModeLimited && p.lists(host) && r.opens(host, port):
		return verdict{ReasonOK, ruleOperator, true}
	case v.reason != ReasonOK || port != mailPort:
		return v
	case r.mailRefused(host, netip.Addr{}, port) || v.rule == ruleObserve:
		return verdict{reason: ReasonPortNotAllowed}
	case v.rule == ruleUnrestricted:
		v.rule = ruleOperator
	}
	return v
}

// decideAddress says the same of an address without a name.
func (r *rules) decideAddress(p *Policy, port uint16) verdict {
	switch {
	case p.Mode() != ModeUnrestricted:
		return verdict{reason: ReasonNoMapping}
	case r.blockedPorts[port]:
		return verdict{reason: ReasonBlocklisted}
	case r.mailRefused(Host{}, netip.Addr{}, port):
		return verdict{reason: ReasonPortNotAllowed}
	}
	return verdict{ReasonOK, ruleUnrestricted, true}
}

// Reload replaces the operator's settings by those of c, at once and for every
// network: DenyCIDRs, Exempt, BlockHosts, BlockPorts, OpenPorts, AllowECH and
// Resolver. Connections that they do not allow any more are closed before it
// returns. After an error the old settings stand. The other fields of c are of
// no account here.
func (g *Gateway) Reload(c Config) error {
	next, err := compileRules(c)
	if err != nil {
		return err
	}
	g.guard.rules.Store(next)
	g.warn(next)
	g.mu.Lock()
	slots := make([]*slot, 0, len(g.slots))
	ids := make([]string, 0, len(g.clients))
	for _, s := range g.slots {
		slots = append(slots, s)
	}
	for id := range g.clients {
		ids = append(ids, id)
	}
	g.mu.Unlock()
	for _, s := range slots {
		s.enforce()
	}
	for _, id := range ids {
		g.enforceClients(id)
	}
	return nil
}

// warn says which exemptions open what is not public.
func (g *Gateway) warn(r *rules) {
	for _, e := range r.exempt {
		if !r.refused.public(e.cidr.Addr()) {
			g.log.Warn("egress exemption of an address that is not public", "host", e.host.name, "cidr", e.cidr.String())
		}
	}
}

// SafetyList returns the ranges that no network reaches whatever its policy
// says, without the machine's own addresses and subnets, which come on top.
func SafetyList() []netip.Prefix { return notPublic() }
