package egress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	sandboxLink = "eth0"     // in the runtime namespace
	gatewayLink = "sandbox0" // in the gateway namespace
)

// Fixed addresses, locally administered. They are the same everywhere, so that
// a sandbox restored into another pair of namespaces finds what it knew.
func gatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x61, 0x74, 0x6f, 0x6c, 0x01} }
func sandboxMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x61, 0x74, 0x6f, 0x6c, 0x02} }

// pair is a runtime namespace and its gateway namespace, held open.
type pair struct{ runtime, gateway netns.NsHandle }

func (p *pair) close() {
	for _, h := range []*netns.NsHandle{&p.runtime, &p.gateway} {
		if h.IsOpen() {
			_ = h.Close() // releases the descriptor whatever it returns
		}
	}
}

// stepError names the step of the set-up that did not work.
func stepError(step string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", step, err)
}

// OnThread runs f on a thread of its own that ends with f. What f does to the
// thread (entering a namespace) ends with it: the thread is never unlocked, so
// the runtime destroys it instead of giving it to another goroutine. It is never
// the main thread, whose namespaces stand for those of the process.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never destroyed: it would hold the namespace
			// for ever. While it is locked here, f gets another one.
			done <- OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// inNamespace runs f in a network namespace. f must not resolve or dial beyond
// that namespace, and must not start goroutines that need it.
func inNamespace(ns netns.NsHandle, f func() error) error {
	return OnThread(func() error {
		if err := netns.Set(ns); err != nil {
			return stepError("entering network namespace", err)
		}
		return f()
	})
}

// makePair makes the two namespaces, the link between them and the rules. After
// an error nothing is left.
func makePair(limits Limits) (_ *pair, err error) {
	p := &pair{runtime: netns.None(), gateway: netns.None()}
	defer func() {
		if err != nil {
			p.close() // the last references: the kernel removes all that is inside
		}
	}()
	err = OnThread(func() error {
		if p.runtime, err = netns.New(); err != nil {
			return stepError("making runtime namespace", err)
		}
		if err := setSysctls(onlyLoopbackIPv6()); err != nil {
			return stepError("setting up runtime namespace", err)
		}
		if p.gateway, err = netns.New(); err != nil {
			return stepError("making gateway namespace", err)
		}
		if err := setSysctls(append(noIPv6(), gatewaySysctls()...)); err != nil {
			return stepError("setting up gateway namespace", err)
		}
		if err := setUpGateway(p.runtime); err != nil {
			return err
		}
		return stepError("installing nf_tables rules", installRules(limits, false))
	})
	if err != nil {
		return nil, err
	}
	return p, inNamespace(p.runtime, setUpRuntime)
}

type sysctl struct{ path, value string }

func noIPv6() []sysctl {
	return []sysctl{{"ipv6/conf/all/disable_ipv6", "1"}, {"ipv6/conf/default/disable_ipv6", "1"}}
}

// onlyLoopbackIPv6 gives the sandbox ::1, which servers of its own bind; no other
// interface gets an IPv6 address, and the gateway has none to talk to.
func onlyLoopbackIPv6() []sysctl {
	return append(noIPv6(), sysctl{"ipv6/conf/lo/disable_ipv6", "0"})
}

// gatewaySysctls are set by hand because a new namespace takes its IPv4
// settings from the host's, whatever they are.
func gatewaySysctls() []sysctl {
	// The kernel would say port-unreachable once a second only.
	out := []sysctl{{"ipv4/ip_forward", "0"}, {"ipv4/icmp_ratelimit", "0"}}
	for _, of := range []string{"all", "default"} {
		for _, s := range []sysctl{
			{"route_localnet", "0"}, {"accept_redirects", "0"}, {"send_redirects", "0"},
			{"accept_source_route", "0"}, {"rp_filter", "1"}, {"forwarding", "0"},
		} {
			out = append(out, sysctl{"ipv4/conf/" + of + "/" + s.path, s.value})
		}
	}
	return out
}

// setSysctls writes the settings of the calling thread's namespace, and those
// only: /proc/sys/net shows the namespace of whoever opens it.
func setSysctls(all []sysctl) error {
	for _, s := range all {
		err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0)
		if errors.Is(err, os.ErrNotExist) && s.path[:4] == "ipv6" {
			continue // a kernel without IPv6 needs none of it switched off
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setUpGateway runs in the gateway namespace. The pair of links is made inside
// the two namespaces; nothing of it ever shows on the host.
func setUpGateway(runtimeNS netns.NsHandle) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return stepError("opening netlink in gateway namespace", err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = gatewayLink, gatewayMAC()
	err = h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: sandboxLink, PeerHardwareAddr: sandboxMAC(), PeerNamespace: netlink.NsFd(runtimeNS),
	})
	if err != nil {
		return stepError("making veth pair", err)
	}
	if err := linkUp(h, "lo", ""); err != nil {
		return stepError("setting up gateway link", err)
	}
	if err := linkUp(h, gatewayLink, gatewayAddress); err != nil {
		return stepError("setting up gateway link", err)
	}
	link, err := h.LinkByName(gatewayLink)
	if err != nil {
		return stepError("setting up gateway link", err)
	}
	if err := routeToRelay(h); err != nil {
		return stepError("setting up policy route to the relay", err)
	}
	// A fixed neighbour: nothing the sandbox says in ARP changes where answers go.
	return stepError("setting up gateway link", h.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(sandboxAddress), HardwareAddr: sandboxMAC(),
	}))
}

// routeToRelay makes whatever has the relay's mark local, wherever it was sent.
// It may be repeated.
func routeToRelay(h *netlink.Handle) error {
	const table = 100
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	err = h.RouteReplace(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: table, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	})
	if err != nil {
		return err
	}
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Family, rule.Priority = relayMark, table, netlink.FAMILY_V4, table
	if err := h.RuleAdd(rule); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// setUpRuntime runs in the runtime namespace.
func setUpRuntime() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return stepError("opening netlink in runtime namespace", err)
	}
	defer h.Close()
	if err := linkUp(h, "lo", ""); err != nil {
		return stepError("setting up sandbox link", err)
	}
	if err := linkUp(h, sandboxLink, sandboxAddress); err != nil {
		return stepError("setting up sandbox link", err)
	}
	link, err := h.LinkByName(sandboxLink)
	if err != nil {
		return stepError("setting up sandbox link", err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gatewayAddress)}
	return stepError("setting up sandbox route", h.RouteAdd(route))
}

func linkUp(h *netlink.Handle, name, address string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(linkBits, 32)}}
		if err := h.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return h.LinkSetUp(link)
}
