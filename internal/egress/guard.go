package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Resolver turns a name into addresses. *net.Resolver is one. It is asked with
// a trailing dot, so that no list of suffixes applies. What it answers is not
// trusted.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Exemption lets one host be at an address that is not public. All three parts
// must fit; another name that resolves to the same address stays refused.
type Exemption struct {
	// Host is a host name as [Canonical] takes it; no wildcard.
	Host string
	// CIDR is where the host may be; the zero Prefix is an error.
	CIDR netip.Prefix
	// Ports are the TCP and UDP ports, 1 to 65535, that are exempted; empty means
	// 80 and 443.
	Ports []int
}

// DialError is a connection that was not made. Reason says which step refused
// or failed; Err says more, for the log.
type DialError struct {
	// Reason is the one of the connection's record.
	Reason Reason
	// Err is not nil.
	Err error
}

// Error returns the reason and what Err says.
func (e *DialError) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

const maxAddresses = 64

// guard is the last check before a packet leaves. Every connection that is made
// for a sandbox is made here.
type guard struct {
	rules   atomic.Pointer[rules] // replaced by a reload
	host    *hostNets
	resolve time.Duration
	connect time.Duration
	nat64   translators

	resolvConf string // the file that has the host's search domains
}

func newGuard(c Config, host *hostNets) (*guard, error) {
	r, err := compileRules(c)
	if err != nil {
		return nil, err
	}
	g := &guard{host: host, resolve: c.Limits.Resolve, connect: c.Limits.Connect, resolvConf: resolvConf}
	g.rules.Store(r)
	return g, nil
}

// check classifies one address for one name and port. host is the zero Host
// where the sandbox named an address.
func (g *guard) check(host Host, addr netip.Addr, port uint16) error {
	r := g.rules.Load()
	if addr.Zone() == "" && !host.IsZero() && r.exempts(host, addr.Unmap(), port) {
		return nil
	}
	if r.mailRefused(host, addr.Unmap(), port) {
		return &DialError{ReasonPortNotAllowed, fmt.Errorf("%s: no exemption for port %d", addr, port)}
	}
	nets, err := g.host.current()
	if err != nil {
		return &DialError{ReasonAddressNotPublic, err}
	}
	for _, a := range g.nat64.reached(addr) {
		if !r.refused.public(a) || !nets.public(a) {
			return &DialError{ReasonAddressNotPublic, fmt.Errorf("%s is not a public address", addr)}
		}
	}
	return nil
}

// checkRoute asks the kernel where a packet to the address would go, and refuses
// what stays on the machine or on its own links. protocol is as in leadsOut.
// errNoRoute is returned as it is: nothing would be sent, and whether that fails
// a connection is the caller's to say.
func (g *guard) checkRoute(host Host, addr netip.Addr, protocol uint8, port uint16) error {
	addr = addr.Unmap()
	if !host.IsZero() && g.rules.Load().exempts(host, addr, port) {
		return nil
	}
	// A translator on the host, or beside it, sends to the address inside. For
	// that the host need not have a route itself.
	for _, inner := range g.nat64.reached(addr)[1:] {
		if err := g.host.kernel.leadsOut(inner, protocol, port); err != nil && !errors.Is(err, errNoRoute) {
			return &DialError{ReasonAddressNotPublic, fmt.Errorf("%s, inside %s: %w", inner, addr, err)}
		}
	}
	err := g.host.kernel.leadsOut(addr, protocol, port)
	if err != nil && !errors.Is(err, errNoRoute) {
		return &DialError{ReasonAddressNotPublic, err}
	}
	return err
}

// lookup resolves the name once. One address that is not public refuses the
// whole answer.
//
// heard are the last answers that the session got, or nil to keep none.
func (g *guard) lookup(ctx context.Context, heard *answers, host Host, port uint16) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, g.resolve)
	defer cancel()
	addrs, err := g.ask(ctx, heard, host)
	if err != nil {
		return nil, &DialError{ReasonResolveFailed, err}
	}
	if len(addrs) == 0 || len(addrs) > maxAddresses {
		return nil, &DialError{ReasonResolveFailed, fmt.Errorf("%d addresses in the answer", len(addrs))}
	}
	for _, a := range addrs {
		if err := g.check(host, a, port); err != nil {
			return nil, err
		}
	}
	if addrs, err = g.withoutUnknown(ctx, host, addrs, port); err != nil {
		return nil, &DialError{ReasonResolveFailed, err}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if err := g.check(host, a, port); err != nil { // a translator may be known now
			return nil, err
		}
		if err := g.checkRoute(host, a, 0, port); err != nil && !errors.Is(err, errNoRoute) {
			return nil, err
		}
		if a = a.Unmap(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	// IPv4 first: many hosts have half a working IPv6.
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return out, nil
}

// resolveTries is how often a question is put to a resolver that says nothing.
const resolveTries = 3

// ask asks the resolver for the addresses of a host. When the resolver stays
// silent, the last answer it gave the session serves once more (RFC 8767); the
// addresses pass the same checks as fresh ones.
func (g *guard) ask(ctx context.Context, heard *answers, host Host) ([]netip.Addr, error) {
	addrs, silent, err := g.askAgain(ctx, "ip", host.name+".")
	if err == nil {
		heard.remember(host, addrs)
	}
	if !silent {
		return addrs, err
	}
	if stale := heard.stale(host); stale != nil {
		return stale, nil
	}
	return nil, err
}

// askAgain puts a question to the resolver again when no answer came: one lost
// datagram must not be a failed connection. The first answer counts, whatever it
// says. silent tells that none came.
func (g *guard) askAgain(ctx context.Context, network, name string) (addrs []netip.Addr, silent bool, err error) {
	for range resolveTries {
		try, cancel := context.WithTimeout(ctx, g.resolve/resolveTries)
		addrs, err = g.rules.Load().resolver.LookupNetIP(try, network, name)
		cancel()
		var dns *net.DNSError
		silent = errors.Is(err, context.DeadlineExceeded) || errors.As(err, &dns) && dns.IsTimeout
		if !silent || ctx.Err() != nil {
			break
		}
	}
	return addrs, silent, err
}

// dial connects to the name over "tcp" or "udp": it resolves once, and classifies
// again what is really connected to, just before it is.
func (g *guard) dial(ctx context.Context, network string, heard *answers, host Host, port uint16) (net.Conn, error) {
	addrs, err := g.lookup(ctx, heard, host, port)
	if err != nil {
		return nil, err
	}
	return g.dialAny(ctx, network, host, addrs, port)
}

// dialAny connects to the first address that answers. Datagrams have no
// handshake: over "udp" that is the first address that there is a way to.
func (g *guard) dialAny(ctx context.Context, network string, host Host, addrs []netip.Addr, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.connect)
	defer cancel()
	var last error
	for i, a := range addrs {
		// Leave a share of the time to each address that is still to be tried.
		deadline, _ := ctx.Deadline()
		share := time.Until(deadline) / time.Duration(len(addrs)-i)
		d := net.Dialer{Timeout: max(share, time.Second), KeepAlive: 30 * time.Second, ControlContext: g.control(host)}
		conn, err := d.DialContext(ctx, network, netip.AddrPortFrom(a, port).String())
		if err == nil {
			return conn, nil
		}
		var refused *DialError
		if errors.As(err, &refused) {
			return nil, refused
		}
		last = err
	}
	return nil, &DialError{ReasonConnectFailed, last}
}

// control is called with the address of each attempt just before connect.
func (g *guard) control(host Host) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, network, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return &DialError{ReasonAddressNotPublic, err}
		}
		if err := g.check(host, at.Addr(), at.Port()); err != nil {
			return err
		}
		if err := g.checkNow(host, at.Addr(), at.Port()); err != nil {
			return err
		}
		protocol := uint8(unix.IPPROTO_TCP)
		if strings.HasPrefix(network, "udp") {
			protocol = unix.IPPROTO_UDP
		}
		return g.checkRoute(host, at.Addr(), protocol, at.Port())
	}
}

// checkNow refuses an address that the host has got since it was last heard of.
func (g *guard) checkNow(host Host, addr netip.Addr, port uint16) error {
	if !host.IsZero() && g.rules.Load().exempts(host, addr.Unmap(), port) {
		return nil
	}
	own, err := g.host.addresses()
	if err == nil && !own.public(addr) {
		err = fmt.Errorf("%s is not a public address", addr)
	}
	if err != nil {
		return &DialError{ReasonAddressNotPublic, err}
	}
	return nil
}
