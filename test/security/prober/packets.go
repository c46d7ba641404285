package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// frames sends Ethernet frames on eth0 and returns what arrives there.
func frames(r *wire.Request) wire.Reply {
	all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(fd)
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return failed(err)
	}
	at := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: uint16(all)}
	if err := unix.Bind(fd, at); err != nil {
		return failed(err)
	}
	for _, f := range r.Frames {
		if err := unix.Sendto(fd, f, 0, at); err != nil {
			return failed(fmt.Errorf("sending a frame of %d bytes: %w", len(f), err))
		}
	}
	reply := wire.Reply{End: "timeout"}
	buf := make([]byte, 4096)
	for deadline := time.Now().Add(wait(r)); ; {
		left := time.Until(deadline)
		if left <= 0 || len(reply.Frames) >= 256 {
			return reply
		}
		tv := unix.NsecToTimeval(int64(max(left, time.Millisecond)))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return failed(err)
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return failed(err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		reply.Frames = append(reply.Frames, append([]byte{}, buf[:n]...))
		if r.Max > 0 && len(reply.Frames) >= r.Max {
			reply.End = "more"
			return reply
		}
	}
}

// flood sends Repeat copies of a datagram as fast as it goes, from one socket
// or Parallel ones, and counts the answers that come until WaitMS after.
func flood(r *wire.Request) wire.Reply {
	reply := wire.Reply{Counts: map[string]int{}}
	results := make(chan [2]int)
	sockets := max(1, r.Parallel)
	for range sockets {
		go func() {
			sent, got := 0, 0
			defer func() { results <- [2]int{sent, got} }()
			c, err := net.Dial("udp4", r.Address)
			if err != nil {
				return
			}
			defer c.Close()
			counted := make(chan int)
			go func() {
				n := 0
				buf := make([]byte, 4096)
				for {
					_ = c.SetReadDeadline(time.Now().Add(wait(r)))
					if _, err := c.Read(buf); err != nil {
						counted <- n
						return
					}
					n++
				}
			}()
			data := append([]byte{}, r.Data...)
			for i := range r.Repeat / sockets {
				if r.Chunk > 0 { // a byte of the message that counts up
					data[r.Chunk] = 'a' + byte(i%26)
				}
				if _, err := c.Write(data); err == nil {
					sent++
				}
			}
			got = <-counted
		}()
	}
	for range sockets {
		n := <-results
		reply.Counts["sent"] += n[0]
		reply.Counts["answered"] += n[1]
	}
	return reply
}

// admin tries to change the network around it, and reports the outcome of each
// step.
func admin(*wire.Request) wire.Reply {
	reply := wire.Reply{Header: map[string]string{}}
	try := func(name string, f func() error) {
		reply.Header[name] = "done"
		if err := f(); err != nil {
			reply.Header[name] = ending(err) + ": " + err.Error()
		}
	}
	link := func() (netlink.Link, error) { return netlink.LinkByName("eth0") }
	try("address", func() error {
		l, err := link()
		if err != nil {
			return err
		}
		for _, text := range []string{"169.254.100.3/24", "10.99.0.1/8", "203.0.113.77/32"} {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
	try("route", func() error {
		l, err := link()
		if err != nil {
			return err
		}
		_, all, _ := net.ParseCIDR("128.0.0.0/1")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK})
	})
	try("link", func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mine0"}, PeerName: "mine1"})
	})
	try("forwarding", func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	try("ipv6", func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0)
	})
	try("namespace", func() error {
		result := make(chan error)
		go func() { result <- ownNamespace() }()
		return <-result
	})
	return reply
}
