// Package egress is the network boundary of sandboxes: it decides which hosts a
// sandbox reaches, and there is no way round it.
//
// Each session gets two network namespaces joined by a veth pair. The sandbox
// runs in the runtime namespace, whose only neighbour is the gateway
// namespace. The gateway namespace has no uplink and no route: nothing is
// filtered on the way out, because there is no way out. Three things answer the
// sandbox there, all sockets of this process: a DNS stub that hands out
// synthetic addresses, a TCP gateway that maps the address back to the name,
// checks that the protocol speaks to that name, and connects from the host
// through a dial guard that refuses every address that is not public, and a
// relay of UDP that does the same under mode unrestricted and refuses all else.
// Rules, policy and names live outside the sandbox's reach.
//
// What a session may reach is a [Policy], which is compiled of a [Spec] once,
// where that enters the server, and is immutable. A [Gateway] opens networks
// under policies, changes them, and dials under them on the server's side. What
// the operator set ([Config]) comes on top of every policy: both decide on a
// connection before anything is resolved, and the guard once its address is
// known. After a change of either, everything open is decided again, and what is
// not allowed any more is closed before the change returns. Each decision is a
// [Record].
//
// Failure model: closed. A rule that cannot be installed, a table that cannot
// be read, a server that is down, a rule set that was flushed: in each case the
// sandbox has no network. It never has an unchecked one.
//
// Not offered: ICMP and IPv6 are not relayed, but a host that has IPv6
// addresses only is reached by name if this machine has IPv6. UDP is answered
// with port-unreachable in every mode but unrestricted, so that QUIC falls back
// to TCP at once.
//
// The package knows nothing of sandbox engines or of stores, and changes
// nothing of the host's own network: no rule, no setting, no listening port.
package egress

import "errors"

// Errors that a [Gateway] returns, wrapped, for the caller to tell apart.
var (
	// ErrNotFound: there is no network with this id.
	ErrNotFound = errors.New("no such network")
	// ErrExists: a network with this id is already there.
	ErrExists = errors.New("network exists already")
	// ErrSuspended: the network has no namespaces; Resume gives it new ones.
	ErrSuspended = errors.New("network is suspended")
	// ErrDescriptors: what is open leaves no descriptors for another network.
	ErrDescriptors = errors.New("no descriptors are left for another network")
	// ErrClosed: the gateway was shut down.
	ErrClosed = errors.New("gateway is shut down")
)

// The addresses of the link between a sandbox and its gateway. Every session
// uses the same ones, in namespaces of its own.
const (
	gatewayAddress = "169.254.100.1"
	sandboxAddress = "169.254.100.2"
	linkBits       = 30
	dnsPort        = 53
	gatewayPort    = 15001
)

// Files returns what a sandbox in such a network needs, path to content: the
// resolver's settings and the names of its own loopback. The map is the
// caller's own.
func Files() map[string][]byte {
	return map[string][]byte{
		"/etc/resolv.conf": []byte("nameserver " + gatewayAddress + "\noptions timeout:2 attempts:2\n"),
		"/etc/hosts":       []byte("127.0.0.1 localhost\n"),
	}
}
