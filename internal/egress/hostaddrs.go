package egress

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostNets knows the addresses of this machine and the subnets it is connected
// to. It reads them anew after every netlink event, and at least once a second
// while it is asked.
type hostNets struct {
	dirty atomic.Bool
	done  chan struct{}

	mu   sync.Mutex // guards what follows
	nets ranges
	read time.Time
}

const hostNetsAge = time.Second

func newHostNets() (*hostNets, error) {
	h := &hostNets{done: make(chan struct{})}
	if _, err := h.current(); err != nil {
		return nil, err
	}
	addrs, routes := make(chan netlink.AddrUpdate, 16), make(chan netlink.RouteUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, h.done); err != nil {
		return nil, fmt.Errorf("watching the host's addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(routes, h.done); err != nil {
		close(h.done)
		return nil, fmt.Errorf("watching the host's routes: %w", err)
	}
	go func() {
		for range addrs {
			h.dirty.Store(true)
		}
	}()
	go func() {
		for range routes {
			h.dirty.Store(true)
		}
	}()
	return h, nil
}

func (h *hostNets) close() { close(h.done) }

// current returns the set as it is now. An error means the set is unknown, and
// the caller must refuse.
func (h *hostNets) current() (ranges, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dirty.Swap(false) && h.nets != nil && time.Since(h.read) < hostNetsAge {
		return h.nets, nil
	}
	nets, err := readHostNets()
	if err != nil {
		h.dirty.Store(true)
		return nil, err
	}
	h.nets, h.read = nets, time.Now()
	return nets, nil
}

func readHostNets() (ranges, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	out := ranges{}
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		a, ok := netip.AddrFromSlice(n.IP)
		bits, size := n.Mask.Size()
		if !ok || size == 0 {
			return
		}
		// A tunnel that says "the whole world is on my link" is a default
		// route in disguise, not a subnet.
		if bits >= 8 {
			out = append(out, netip.PrefixFrom(a.Unmap(), bits).Masked())
		}
		out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
	}
	for _, a := range addrs {
		add(a.IPNet)
		add(a.Peer)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("reading the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Scope == unix.RT_SCOPE_LINK && r.Gw == nil && r.Dst != nil && r.Family == netlink.FAMILY_V4 {
			if bits, _ := r.Dst.Mask.Size(); bits >= 8 {
				add(r.Dst)
			}
		}
	}
	return out, nil
}
