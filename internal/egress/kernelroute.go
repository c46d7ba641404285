package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errNoRoute is the kernel's answer that it would not send a packet at all: there
// is no route, or one that says unreachable, prohibit or blackhole. A connection
// to such an address fails by itself.
var errNoRoute = errors.New("the host has no route to the address")

// kernelRoutes asks the kernel of one network namespace what it would do with a
// packet to an address. Unlike a list of interface addresses, the answer covers
// every routing table and rule: subnets that are on the host's own link by a
// route only, tunnels, and addresses that are local by a route only.
type kernelRoutes struct {
	sockets map[int]*nl.SocketHandle // one, locked for each question
}

// openKernelRoutes opens a socket in the calling thread's network namespace. The
// answers are about that namespace for ever, whichever thread asks.
func openKernelRoutes() (*kernelRoutes, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("asking for the host's routes: %w", err)
	}
	if err := errors.Join(s.SetSendTimeout(&nl.SocketTimeoutTv), s.SetReceiveTimeout(&nl.SocketTimeoutTv)); err != nil {
		s.Close()
		return nil, fmt.Errorf("asking for the host's routes: %w", err)
	}
	return &kernelRoutes{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (k *kernelRoutes) close() { k.sockets[unix.NETLINK_ROUTE].Close() }

// leadsOut returns nil if a packet to the address leaves through a gateway or by
// a default route, [errNoRoute] if it does not leave at all, and another error
// if the address is on this machine or on one of its own links, or if the kernel
// did not answer. protocol is unix.IPPROTO_TCP or unix.IPPROTO_UDP, for rules
// that look at it and at the port; zero means that neither is known.
//
// The kernel asks itself twice when a socket is connected: once to choose the
// source address, and once more with it, as a rule may look at the source. So
// does leadsOut.
func (k *kernelRoutes) leadsOut(addr netip.Addr, protocol uint8, port uint16) error {
	q := routeQuestion{addr: addr, protocol: protocol, port: port}
	chosen, err := k.ask(q)
	if err != nil {
		return err
	}
	if q.source = chosen.source; q.source.IsValid() {
		if chosen, err = k.ask(q); err != nil {
			return err
		}
	}
	q.matched = true
	matched, err := k.ask(q)
	if err != nil {
		return err
	}
	switch {
	case chosen.kind != unix.RTN_UNICAST || matched.kind != unix.RTN_UNICAST:
		return fmt.Errorf("%s is no address of another machine", addr)
	case (matched.gateways || matched.opaque) && chosen.gateways: // not so if the router said that the address is on the link
		return nil
	case !matched.gateways && coversAll(addr, matched.length):
		return nil
	}
	return fmt.Errorf("%s is on a link of the host: its route (prefix length %d) has no gateway", addr, matched.length)
}

// coversAll tells whether a prefix of this length is a default route. Tunnels
// that take all traffic are often routed in halves (0.0.0.0/1 and 128.0.0.0/1,
// ::/1 and 8000::/1) or, for IPv6, as 2000::/3, which is all that is global.
func coversAll(addr netip.Addr, length int) bool {
	return length <= 1 || addr.Is6() && length <= 3
}

// What the constants of package unix lack.
const (
	attributeType    = 0x3fff // NLA_TYPE_MASK
	attributeNexthop = 30     // RTA_NH_ID
)

// routeQuestion is one RTM_GETROUTE.
type routeQuestion struct {
	addr     netip.Addr
	source   netip.Addr // or invalid
	protocol uint8
	port     uint16
	matched  bool // ask for the entry of the table, not for what was made of it
}

// routeAnswer is what the kernel says of an address.
type routeAnswer struct {
	kind     uint8      // RTN_UNICAST, RTN_LOCAL and so on
	length   int        // of the matched prefix, in bits; only where matched was asked
	gateways bool       // each way that a packet may take has a gateway
	opaque   bool       // the entry names a nexthop object and does not show what is in it
	source   netip.Addr // that a packet would have, or invalid
}

// ask puts one question.
func (k *kernelRoutes) ask(q routeQuestion) (routeAnswer, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	req.Sockets = k.sockets
	msg := &nl.RtMsg{}
	msg.Family, msg.Dst_len = unix.AF_INET, 32
	if q.addr.Is6() {
		msg.Family, msg.Dst_len = unix.AF_INET6, 128
	}
	if q.matched {
		msg.Flags |= unix.RTM_F_FIB_MATCH
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, q.addr.AsSlice()))
	if q.source.IsValid() {
		msg.Src_len = msg.Dst_len
		req.AddData(nl.NewRtAttr(unix.RTA_SRC, q.source.AsSlice()))
	}
	if q.protocol != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{q.protocol}))
		req.AddData(nl.NewRtAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, q.port)))
	}
	replies, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	switch {
	case noRoute(err):
		return routeAnswer{}, fmt.Errorf("%w: %w", errNoRoute, err)
	case err != nil:
		return routeAnswer{}, fmt.Errorf("asking the kernel for the route to %s: %w", q.addr, err)
	case len(replies) != 1:
		return routeAnswer{}, fmt.Errorf("asking the kernel for the route to %s: %d answers", q.addr, len(replies))
	}
	return parseRoute(replies[0])
}

// noRoute tells whether the kernel said that it would send nothing: no route,
// unreachable, blackhole, prohibit, or a family that the host does not have.
func noRoute(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES, unix.EAFNOSUPPORT, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// parseRoute reads an RTM_NEWROUTE. What cannot be read is an error, and the
// caller refuses.
func parseRoute(reply []byte) (routeAnswer, error) {
	if len(reply) < unix.SizeofRtMsg {
		return routeAnswer{}, errors.New("the kernel's answer about a route is too short")
	}
	msg := nl.DeserializeRtMsg(reply)
	attrs, err := nl.ParseRouteAttr(reply[msg.Len():])
	if err != nil {
		return routeAnswer{}, fmt.Errorf("reading the kernel's answer about a route: %w", err)
	}
	a := routeAnswer{kind: msg.Type, length: int(msg.Dst_len)}
	named, several := false, false
	for _, attr := range attrs {
		switch attr.Attr.Type & attributeType {
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			a.gateways = true
		case unix.RTA_PREFSRC:
			a.source, _ = netip.AddrFromSlice(attr.Value)
		case attributeNexthop:
			named = true
		case unix.RTA_MULTIPATH:
			several = true
			if a.gateways, err = parseMultipath(attr.Value); err != nil {
				return routeAnswer{}, err
			}
		}
	}
	// Where net.ipv4.nexthop_compat_mode is off, an entry shows the number of its
	// nexthop object only; the kernel's choice of the moment shows the gateway.
	a.opaque = named && !several && !a.gateways
	return a, nil
}

// parseMultipath tells whether all ways of a route with several have a gateway.
func parseMultipath(b []byte) (all bool, err error) {
	for all = true; len(b) > 0; {
		if len(b) < unix.SizeofRtNexthop {
			return false, errors.New("the kernel's answer about a route is cut off")
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return false, errors.New("the kernel's answer about a route has a wrong length")
		}
		attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtNexthop:size])
		if err != nil {
			return false, fmt.Errorf("reading the kernel's answer about a route: %w", err)
		}
		has := false
		for _, attr := range attrs {
			if t := attr.Attr.Type & attributeType; t == unix.RTA_GATEWAY || t == unix.RTA_VIA {
				has = true
			}
		}
		all = all && has
		b = b[min((size+unix.RTNH_ALIGNTO-1)&^(unix.RTNH_ALIGNTO-1), len(b)):]
	}
	return all, nil
}
