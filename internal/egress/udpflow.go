package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// udpFlow is what one port of a sandbox exchanges with one destination.
type udpFlow struct {
	slot   *slot
	key    udpKey
	start  time.Time
	ctx    context.Context
	cancel context.CancelFunc

	// The decision the flow was started under.
	st     *state
	host   Host // the name the destination stands for, or zero
	choice verdict

	active   atomic.Int64 // the flow's age when something last moved
	answered atomic.Int64 // its age when the peer last answered; zero: never
	sent     atomic.Int64 // bytes
	received atomic.Int64

	mu     sync.Mutex   // guards what follows
	up     *net.UDPConn // connected to the peer; nil until it is
	down   *net.UDPConn // speaks to the sandbox as the destination
	held   [][]byte     // waits for up
	ended  Reason       // why it was closed from outside, or empty
	closed bool
	dialed netip.Addr
	kept   *Record
}

// answerAge is how long an answer counts: a flow whose peer says nothing for
// longer is held to the rate of unanswered ones.
const answerAge = 10 * time.Second

// send passes a datagram of the sandbox on, or drops it.
func (f *udpFlow) send(b []byte) {
	age := f.age()
	if last := f.answered.Load(); last == 0 || age-last > int64(answerAge) {
		if !f.slot.udpRate.AllowN(time.Now(), len(b)) {
			f.record(Record{Reason: ReasonRateLimit})
			return
		}
	}
	f.active.Store(age)
	f.mu.Lock()
	up := f.up
	if up == nil && !f.closed && len(f.held) < heldDatagrams {
		f.held = append(f.held, append([]byte(nil), b...))
	}
	f.mu.Unlock()
	if up != nil {
		f.forward(up, b)
	}
}

func (f *udpFlow) forward(up *net.UDPConn, b []byte) {
	_, err := up.Write(b)
	if err == nil {
		f.sent.Add(int64(len(b)))
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		f.slot.unreachable(f.key) // as the peer's machine said
	}
}

// run connects the flow and brings answers back until it is idle or ended.
func (f *udpFlow) run() {
	up, err := f.dial()
	if err != nil {
		f.undialed(err)
		return
	}
	down, err := f.answerer()
	if err != nil {
		_ = up.Close()
		f.undialed(&DialError{ReasonConnectFailed, err})
		return
	}
	if !f.connected(up, down) {
		return
	}
	raw, err := up.SyscallConn()
	if err != nil {
		return
	}
	sandbox := netip.AddrPortFrom(netip.MustParseAddr(sandboxAddress), f.key.port)
	for f.ctx.Err() == nil {
		_ = up.SetReadDeadline(time.Now().Add(f.left()))
		err := f.slot.gateway.buffers.receive(raw, func(b, _ []byte, _ unix.Sockaddr) {
			age := f.age()
			f.active.Store(age)
			f.answered.Store(age)
			if _, err := down.WriteToUDPAddrPort(b, sandbox); err == nil {
				f.received.Add(int64(len(b)))
			}
		})
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			f.slot.unreachable(f.key)
		case errors.Is(err, os.ErrDeadlineExceeded) && f.left() > 0:
		case err != nil:
			return
		}
	}
}

// age is for how long there has been the flow, in nanoseconds and never zero.
// The wall clock does not count: its steps would end all flows, or keep them.
func (f *udpFlow) age() int64 { return max(1, int64(time.Since(f.start))) }

// left is for how long the flow stays if nothing moves.
func (f *udpFlow) left() time.Duration {
	idle := f.slot.gateway.config.Limits.UDPUnanswered
	if f.answered.Load() != 0 {
		idle = f.slot.gateway.config.Limits.UDPIdle
	}
	return idle - time.Duration(f.age()-f.active.Load())
}

// dial makes the socket to the outside. It is connected, so that only the asked
// peer can answer.
func (f *udpFlow) dial() (*net.UDPConn, error) {
	g := f.slot.gateway.guard
	port := f.key.dest.Port()
	addrs := []netip.Addr{f.key.dest.Addr()}
	if f.host.IsZero() {
		if err := g.check(Host{}, addrs[0], port); err != nil {
			return nil, err
		}
	} else {
		var err error
		if addrs, err = g.lookup(f.ctx, f.st.answers, f.host, port); err != nil {
			return nil, err
		}
	}
	return g.dialUDP(f.ctx, f.host, addrs, port)
}

// answerer makes the socket that speaks to the sandbox as the destination.
func (f *udpFlow) answerer() (*net.UDPConn, error) {
	var c net.PacketConn
	err := inNamespace(f.slot.ns, func() (err error) {
		lc := net.ListenConfig{Control: transparent()}
		c, err = lc.ListenPacket(context.Background(), "udp4", f.key.dest.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// connected records the flow and sends what waited, unless it was ended.
func (f *udpFlow) connected(up, down *net.UDPConn) bool {
	at, _ := netip.ParseAddrPort(up.RemoteAddr().String()) // the kernel's own words
	f.mu.Lock()
	f.up, f.down, f.dialed = up, down, at.Addr().Unmap()
	ended := f.ended
	f.mu.Unlock()
	// Rules that came meanwhile did not find the address here.
	if err := f.slot.gateway.guard.check(f.host, f.dialed, f.key.dest.Port()); ended == "" && err != nil {
		ended = dialReason(err)
	}
	if ended != "" {
		f.record(Record{Reason: ended})
		return false
	}
	kept := f.record(Record{Reason: ReasonOK, Rule: f.choice.rule, DialedAddress: at.String()})
	f.mu.Lock()
	f.kept = kept
	held := f.held
	f.held = nil
	f.mu.Unlock()
	for _, b := range held {
		f.forward(up, b)
	}
	return true
}

func (f *udpFlow) undialed(err error) {
	f.mu.Lock()
	ended := f.ended
	f.mu.Unlock()
	reason := dialReason(err)
	if ended != "" {
		reason = ended
	}
	f.record(Record{Reason: reason, Rule: f.choice.rule})
	f.slot.unreachable(f.key)
}

// allowed tells whether the flow would be allowed now.
func (f *udpFlow) allowed(st *state) bool {
	if _, v := f.slot.decideUDP(st, f.key.dest); v.reason != ReasonOK {
		return false
	}
	f.mu.Lock()
	dialed := f.dialed
	f.mu.Unlock()
	return !dialed.IsValid() || f.slot.gateway.guard.check(f.host, dialed, f.key.dest.Port()) == nil
}

// end closes the flow from outside.
func (f *udpFlow) end(reason Reason) {
	f.mu.Lock()
	first, passing := f.ended == "", f.kept != nil
	f.ended = reason
	f.mu.Unlock()
	if first && passing {
		f.record(Record{Reason: reason})
	}
	f.cancel()
	f.close()
}

// close closes the sockets and completes the record.
func (f *udpFlow) close() {
	f.mu.Lock()
	up, down, kept, done := f.up, f.down, f.kept, f.closed
	f.closed, f.held = true, nil
	f.mu.Unlock()
	if up != nil {
		_ = up.Close() // closing twice is harmless
		_ = down.Close()
	}
	if kept != nil && !done {
		f.st.journal.finish(kept, f.sent.Load(), f.received.Load())
	}
}

func (f *udpFlow) record(r Record) *Record {
	r.Time, r.Host, r.Protocol = f.start, f.host.name, "udp"
	r.DestAddress, r.DestPort = f.key.dest.Addr().String(), int(f.key.dest.Port())
	return f.slot.record(f.st, r)
}

// dialUDP makes a socket that is connected to the first address that there is a
// way to. Datagrams have no handshake: an address that does not answer is found
// out by whoever sends them.
func (g *guard) dialUDP(ctx context.Context, host Host, addrs []netip.Addr, port uint16) (*net.UDPConn, error) {
	var last error
	for _, a := range addrs {
		d := net.Dialer{Timeout: g.connect, ControlContext: g.control(host)}
		c, err := d.DialContext(ctx, "udp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		if err == nil {
			return c.(*net.UDPConn), nil
		}
		var refused *DialError
		if errors.As(err, &refused) {
			return nil, refused
		}
		last = err
	}
	return nil, &DialError{ReasonConnectFailed, last}
}
