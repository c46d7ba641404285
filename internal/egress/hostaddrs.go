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
	link  *netlink.Handle // a socket that stays open, for questions at every connection

	// kernel answers what no list of addresses can: what would be done with a
	// packet.
	kernel *kernelRoutes

	mu   sync.Mutex // guards what follows
	nets ranges
	read time.Time
}

const hostNetsAge = time.Second

func newHostNets() (*hostNets, error) {
	link, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("asking for the host's addresses: %w", err)
	}
	kernel, err := openKernelRoutes()
	if err != nil {
		link.Close()
		return nil, err
	}
	h := &hostNets{done: make(chan struct{}), link: link, kernel: kernel}
	if _, err := h.current(); err != nil {
		h.close()
		return nil, err
	}
	addrs, routes := make(chan netlink.AddrUpdate, 16), make(chan netlink.RouteUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, h.done); err != nil {
		h.close()
		return nil, fmt.Errorf("watching the host's addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(routes, h.done); err != nil {
		h.close()
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

func (h *hostNets) close() {
	close(h.done)
	h.link.Close()
	h.kernel.close()
}

// addresses asks the kernel for the host's addresses and their subnets of this
// very moment. current may not have heard yet of one that has just come.
func (h *hostNets) addresses() (ranges, error) {
	addrs, err := h.link.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	out := ranges{}
	for _, a := range addrs {
		out = out.and(a.IPNet).and(a.Peer)
	}
	return out, nil
}

// current returns the set as it is now. An error means the set is unknown, and
// the caller must refuse.
func (h *hostNets) current() (ranges, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dirty.Swap(false) && h.nets != nil && time.Since(h.read) < hostNetsAge {
		return h.nets, nil
	}
	nets, err := h.readAll()
	if err != nil {
		h.dirty.Store(true)
		return nil, err
	}
	h.nets, h.read = nets, time.Now()
	return nets, nil
}

func (h *hostNets) readAll() (ranges, error) {
	out, err := h.addresses()
	if err != nil {
		return nil, err
	}
	routes, err := h.link.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("reading the host's routes: %w", err)
	}
	for _, r := range routes {
		if r.Scope == unix.RT_SCOPE_LINK && r.Gw == nil && r.Dst != nil && r.Family == netlink.FAMILY_V4 {
			if bits, _ := r.Dst.Mask.Size(); bits >= 8 {
				out = out.and(r.Dst)
			}
		}
	}
	return out, nil
}

// and adds an address of the host, and the subnet that it is in.
func (r ranges) and(n *net.IPNet) ranges {
	if n == nil {
		return r
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return r
	}
	// A tunnel that says "the whole world is on my link" is a default route in
	// disguise, not a subnet.
	if bits >= 8 {
		r = append(r, netip.PrefixFrom(a.Unmap(), bits).Masked())
	}
	return append(r, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
}
