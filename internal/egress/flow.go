package egress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// InvalidHost stands in records for a name that was not canonical.
const InvalidHost = "invalid"

// flow is one TCP connection of a sandbox.
type flow struct {
	connection
	slot   *slot
	client *net.TCPConn // the sandbox's side
	deny   Reason       // what every request of a refused plain-HTTP connection is told
}

// originalDst asks the kernel where the sandbox meant to connect to.
func originalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var out netip.AddrPort
	var got error
	err = raw.Control(func(fd uintptr) {
		// A struct sockaddr_in fits in the first 16 bytes of this one.
		m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			got = err
			return
		}
		b := m.Multiaddr
		out = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
	})
	return out, errors.Join(err, got)
}

// run handles the connection to its end.
func (f *flow) run() {
	switch {
	case f.choice.reason != ReasonOK:
		f.refuse(f.choice.reason)
	case f.choice.raw:
		f.pass("tcp", hello{})
	default:
		f.converse()
	}
}

// converse checks what the client says first, and passes it on if it speaks to
// the host it was allowed.
func (f *flow) converse() {
	head, kind := f.peek()
	switch kind {
	case "tls":
		h, err := f.hello(head)
		reason, claimed := checkHello(h, err, f.host, f.gateway.guard.rules.Load().allowECH)
		if reason == ReasonECHPresent && f.decoy(h) {
			reason = ReasonOK
		}
		if reason != ReasonOK {
			f.record(Record{Protocol: "tls", Reason: reason, ClaimedHost: claimed, ECH: h.ech})
			f.alert()
			return
		}
		f.pass("tls", h)
	case "http":
		f.slot.serveHTTP(f, head)
	default:
		f.record(Record{Protocol: "tcp", Reason: ReasonProtocolNotAllowed})
		f.reset()
	}
}

// refuse answers a connection that is not to be made, in its own protocol where
// the port says what that is.
func (f *flow) refuse(reason Reason) {
	if !f.st.policy.speaks(f.dest.Port()) {
		f.record(Record{Protocol: "tcp", Reason: reason})
		f.reset()
		return
	}
	head, kind := f.peek()
	switch kind {
	case "tls":
		h, err := f.hello(head)
		f.record(Record{Protocol: "tls", Reason: reason, ClaimedHost: f.claimed(h.sni, err), ECH: h.ech})
		f.alert()
	case "http":
		f.deny = reason
		f.slot.serveHTTP(f, head)
	default:
		f.record(Record{Protocol: "tcp", Reason: reason})
		f.reset()
	}
}

// hello reads the rest of a ClientHello that began with head.
func (f *flow) hello(head []byte) (hello, error) {
	return readHello(io.MultiReader(bytes.NewReader(head), f.client), f.gateway.config.Limits.HelloSize)
}

// claimed is the name a client sent, as records show it.
func (f *flow) claimed(sent string, err error) string {
	if err != nil || sent == "" {
		return ""
	}
	name, err := Canonical(sent)
	if err != nil {
		return InvalidHost
	}
	if name == f.host {
		return ""
	}
	return name.name
}

// peek reads the first bytes and says what they begin: "tls", "http" or
// nothing known.
func (f *flow) peek() ([]byte, string) {
	_ = f.client.SetReadDeadline(time.Now().Add(f.gateway.config.Limits.Hello))
	buf := make([]byte, 0, 2048)
	for {
		n, err := f.client.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if kind, sure := protocolOf(buf); sure {
			return buf, kind
		}
		if err != nil {
			return buf, ""
		}
	}
}

// protocolOf looks at the first bytes of a connection. It is sure as soon as no
// further byte can change what it says.
func protocolOf(b []byte) (kind string, sure bool) {
	const longestMethod = 20
	if len(b) == 0 {
		return "", false
	}
	if b[0] == 0x16 {
		return "tls", true
	}
	for i, c := range b {
		switch {
		case c == ' ' && i > 0:
			return "http", true
		case (c < 'A' || c > 'Z') && (c != '-' || i == 0) || i >= longestMethod:
			return "", true
		}
	}
	return "", false
}

// pass connects and moves bytes both ways until both sides are done.
func (f *flow) pass(protocol string, h hello) {
	conn, err := f.dial()
	if err != nil {
		f.undialed(protocol, h, err)
		return
	}
	defer conn.Close()
	if err := f.connected(conn); err != nil {
		f.undialed(protocol, h, err)
		return
	}
	f.passes(conn, Record{Protocol: protocol, ECH: h.ech})
	_ = f.client.SetDeadline(time.Time{})
	up, sent, received := conn.(*net.TCPConn), int64(0), int64(0)
	_, err = up.Write(h.raw)
	if err == nil {
		stop := context.AfterFunc(f.ctx, func() { reset(up); f.reset() })
		sent, received = splice(f.client, up, f.gateway.config.Limits.Idle)
		stop()
		sent += int64(len(h.raw))
	}
	f.finish(sent, received)
	if err == nil {
		// Both directions have ended, or a reset was passed on. What the client
		// has not read yet goes on to it; the reset at the flow's end would take
		// it away.
		_ = f.client.Close()
	}
}

// undialed answers a client whose connection could not be made.
func (f *flow) undialed(protocol string, h hello, err error) {
	reason := dialReason(err)
	f.gateway.log.Debug("egress: not connected", "session", f.st.id, "host", f.host.name, "error", err)
	if protocol == "tls" && reason.verdict() == VerdictRefused {
		f.record(Record{Protocol: protocol, Reason: reason, Rule: f.choice.rule, ECH: h.ech})
		f.alert()
		return
	}
	if protocol == "tcp" && reason.verdict() == VerdictRefused {
		f.refuse(reason)
		return
	}
	f.record(Record{Protocol: protocol, Reason: reason, Rule: f.choice.rule, ECH: h.ech})
	f.reset()
}

// reset closes the client's side without ceremony.
func (f *flow) reset() { reset(f.client) }

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close() // closing twice is harmless
}

// alert tells a TLS client that it was refused. What the client still sends is
// read for a moment: closing over unread bytes would reset the connection and
// take the alert with it.
func (f *flow) alert() {
	_ = f.client.SetDeadline(time.Now().Add(time.Second))
	if _, err := f.client.Write(accessDenied()); err == nil && f.client.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(f.client, 64<<10))
	}
	_ = f.client.Close()
}

// splice moves bytes both ways until both directions have ended. The two
// connections are bare on purpose: wrapped ones would be copied through this
// process instead of inside the kernel.
func splice(client, up *net.TCPConn, idle time.Duration) (sent, received int64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		received = copyHalf(client, up, idle)
	}()
	sent = copyHalf(up, client, idle)
	<-done
	return sent, received
}

// copyHalf moves one direction and passes its end on: a close as a close, an
// error as a reset of both sides.
func copyHalf(dst, src *net.TCPConn, idle time.Duration) (total int64) {
	for {
		_ = src.SetReadDeadline(time.Now().Add(idle))
		n, err := io.Copy(dst, src)
		total += n
		if err == nil {
			_ = dst.CloseWrite()
			return total
		}
		var t net.Error
		if errors.As(err, &t) && t.Timeout() && !quiet(src, idle) {
			continue // this direction was silent, the other was not
		}
		reset(dst)
		reset(src)
		return total
	}
}

// quiet tells whether nothing went over the connection, either way, for about
// that long.
func quiet(c *net.TCPConn, d time.Duration) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	last := uint32(0)
	if raw.Control(func(fd uintptr) {
		info, e := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err = e; e == nil {
			last = min(info.Last_data_recv, info.Last_data_sent)
		}
	}) != nil || err != nil {
		return true
	}
	return time.Duration(last)*time.Millisecond >= d*9/10
}
