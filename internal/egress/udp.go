package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// All UDP but DNS arrives at one socket of the slot, by way of the kernel's
// transparent proxy, with the address that the sandbox sent it to. Under mode
// unrestricted it is relayed: each pair of the sandbox's port and a destination
// is a flow with a socket of its own to the outside, made once the guard has
// passed the destination. Everywhere else, and for what is refused, the answer
// is the ICMP message that says "port unreachable".

const (
	relayPort   = 15002
	maxDatagram = 64 << 10
	// heldDatagrams of a flow wait until it is connected.
	heldDatagrams = 8
)

// udpKey is what makes a flow: from the sandbox's port to a destination.
type udpKey struct {
	port uint16
	dest netip.AddrPort
}

// datagrams lends buffers that hold the largest one.
type datagrams struct{ pool sync.Pool }

func (d *datagrams) get() *[]byte {
	if b, ok := d.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, maxDatagram)
	return &b
}

// receive waits for one datagram and calls handle with it, which must not keep
// it. A buffer is borrowed only when there is something to read, so that idle
// sockets cost none.
func (d *datagrams) receive(c syscall.RawConn, handle func(b, oob []byte, from unix.Sockaddr)) error {
	var failed error
	err := c.Read(func(fd uintptr) bool {
		buf := d.get()
		defer d.pool.Put(buf)
		var oob [64]byte
		n, oobn, flags, from, err := unix.Recvmsg(int(fd), *buf, oob[:], unix.MSG_DONTWAIT)
		for errors.Is(err, unix.EINTR) {
			n, oobn, flags, from, err = unix.Recvmsg(int(fd), *buf, oob[:], unix.MSG_DONTWAIT)
		}
		if errors.Is(err, unix.EAGAIN) {
			return false
		}
		if failed = err; err == nil && flags&unix.MSG_TRUNC == 0 {
			handle((*buf)[:n], oob[:oobn], from)
		}
		return true
	})
	return errors.Join(err, failed)
}

// transparent makes a socket that may speak for addresses of others, and that
// the output rules know by its mark.
func transparent(extra ...int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			set := func(level, name, value int) {
				if err := unix.SetsockoptInt(int(fd), level, name, value); err != nil && failed == nil {
					failed = os.NewSyscallError("setsockopt", err)
				}
			}
			set(unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			set(unix.SOL_SOCKET, unix.SO_MARK, replyMark)
			for _, option := range extra {
				set(unix.SOL_IP, option, 1)
			}
		})
		return errors.Join(err, failed)
	}
}

// listenRelay opens the relay's sockets in the gateway namespace, in which the
// calling thread is.
func (s *slot) listenRelay() error {
	lc := net.ListenConfig{Control: transparent(unix.IP_RECVORIGDSTADDR)}
	at := netip.AddrPortFrom(netip.MustParseAddr(gatewayAddress), relayPort)
	c, err := lc.ListenPacket(context.Background(), "udp4", at.String())
	if err != nil {
		return err
	}
	s.relay = c.(*net.UDPConn)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	s.icmp = os.NewFile(uintptr(fd), "icmp")
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, replyMark))
}

// serveRelay takes datagrams until the socket is closed.
func (s *slot) serveRelay() {
	raw, err := s.relay.SyscallConn()
	if err != nil {
		return
	}
	for {
		err := s.gateway.buffers.receive(raw, func(b, oob []byte, from unix.Sockaddr) {
			sender, ok := from.(*unix.SockaddrInet4)
			dest, known := originalUDP(oob)
			if ok && known {
				s.datagram(udpKey{uint16(sender.Port), dest}, b)
			}
		})
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// originalUDP finds the address that a datagram was sent to.
func originalUDP(oob []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := range messages {
		to, err := unix.ParseOrigDstAddr(&messages[i])
		if v4, ok := to.(*unix.SockaddrInet4); ok && err == nil {
			return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// datagram passes one datagram on, starting a flow for it if it may have one.
func (s *slot) datagram(key udpKey, b []byte) {
	defer func() {
		if p := recover(); p != nil { // one datagram, not the server
			s.gateway.log.Error("panic while relaying a datagram", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.mu.Lock()
	f := s.udpFlows[key]
	s.mu.Unlock()
	if f == nil {
		if f = s.startUDP(key); f == nil {
			return
		}
	}
	f.send(b)
}

// startUDP starts a flow, or refuses it and returns nil.
func (s *slot) startUDP(key udpKey) *udpFlow {
	st := s.state.Load()
	if st == nil {
		s.unreachable(key)
		return nil
	}
	f := &udpFlow{connection: s.connection("udp", key.dest, st), slot: s, key: key}
	f.cut = f.close
	if f.host, f.choice = f.decide(st); f.choice.reason != ReasonOK {
		f.record(Record{Reason: f.choice.reason})
		s.unreachable(key)
		return nil
	}
	reason := s.admit(&f.connection, udpFlowDescriptors,
		func() bool { return len(s.udpFlows) < s.gateway.config.Limits.UDPFlows }, func() { s.udpFlows[key] = f })
	switch {
	case reason == ReasonRateLimit || reason == ReasonConnectionLimit:
		f.record(Record{Reason: reason})
		return nil
	case reason != ReasonOK || f.choice.reason != ReasonOK:
		return nil // ended or refused meanwhile
	}
	go s.serve(&f.connection, f.run, udpFlowDescriptors, func() { delete(s.udpFlows, key) })
	return f
}

// unreachable tells the sandbox that nobody listens where it sent a datagram. A
// message that cannot be sent is lost, as any may be.
func (s *slot) unreachable(key udpKey) {
	raw, err := s.icmp.SyscallConn()
	if err != nil {
		return
	}
	packet := portUnreachable(key)
	to := &unix.SockaddrInet4{Addr: netip.MustParseAddr(sandboxAddress).As4()}
	_ = raw.Control(func(fd uintptr) { _ = unix.Sendto(int(fd), packet, unix.MSG_DONTWAIT, to) })
}

// portUnreachable is the IPv4 packet with the ICMP message about a datagram of
// the sandbox. Of the datagram it quotes what receivers look at: addresses and
// ports.
func portUnreachable(key udpKey) []byte {
	const header = 20
	ip := func(protocol byte, length int, from, to netip.Addr) []byte {
		h := make([]byte, header)
		h[0], h[3], h[8], h[9] = 0x45, byte(length), 64, protocol
		source, target := from.As4(), to.As4()
		copy(h[12:], source[:])
		copy(h[16:], target[:])
		sum := inetChecksum(h)
		h[10], h[11] = byte(sum>>8), byte(sum)
		return h
	}
	sandbox, dest := netip.MustParseAddr(sandboxAddress), key.dest
	message := append([]byte{3, icmpPortUnreachable, 0, 0, 0, 0, 0, 0}, ip(unix.IPPROTO_UDP, header+8, sandbox, dest.Addr())...)
	message = append(message, byte(key.port>>8), byte(key.port), byte(dest.Port()>>8), byte(dest.Port()), 0, 8, 0, 0)
	sum := inetChecksum(message)
	message[2], message[3] = byte(sum>>8), byte(sum)
	return append(ip(unix.IPPROTO_ICMP, header+len(message), dest.Addr(), sandbox), message...)
}

// inetChecksum is the Internet's.
func inetChecksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
