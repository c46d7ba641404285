package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// udpFlow is what one port of a sandbox exchanges with one destination.
type udpFlow struct {
	connection
	slot *slot
	key  udpKey

	active   atomic.Int64 // the flow's age when something last moved
	answered atomic.Int64 // its age when the peer last answered; zero: never
	sent     atomic.Int64 // bytes
	received atomic.Int64

	sockets sync.Mutex   // guards what follows
	up      *net.UDPConn // connected to the peer; nil until it is
	down    *net.UDPConn // speaks to the sandbox as the destination
	held    [][]byte     // waits for up
	closed  bool
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
	f.sockets.Lock()
	up := f.up
	if up == nil && !f.closed && len(f.held) < heldDatagrams {
		f.held = append(f.held, append([]byte(nil), b...))
	}
	f.sockets.Unlock()
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
	up, down, err := f.open()
	if err != nil {
		f.record(Record{Reason: dialReason(err), Rule: f.choice.rule})
		f.slot.unreachable(f.key)
		return
	}
	raw, err := up.SyscallConn()
	if err != nil {
		return
	}
	sandbox := netip.AddrPortFrom(netip.MustParseAddr(sandboxAddress), f.key.port)
	for f.ctx.Err() == nil {
		_ = up.SetReadDeadline(time.Now().Add(f.left()))
		err := f.gateway.buffers.receive(raw, func(b, _ []byte, _ unix.Sockaddr) {
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
	idle := f.gateway.config.Limits.UDPUnanswered
	if f.answered.Load() != 0 {
		idle = f.gateway.config.Limits.UDPIdle
	}
	return idle - time.Duration(f.age()-f.active.Load())
}

// open makes the flow's two sockets, records the flow and sends what waited. The
// one to the outside is connected, so that only the asked peer can answer.
func (f *udpFlow) open() (up, down *net.UDPConn, err error) {
	conn, err := f.dial()
	if err != nil {
		return nil, nil, err
	}
	up = conn.(*net.UDPConn)
	if down, err = f.answerer(); err != nil {
		_ = up.Close()
		return nil, nil, &DialError{ReasonConnectFailed, err}
	}
	f.sockets.Lock()
	f.down = down
	f.sockets.Unlock()
	if err := f.connected(up); err != nil {
		_ = up.Close()
		return nil, nil, err
	}
	f.passes(up, Record{})
	f.sockets.Lock()
	f.up = up
	held := f.held
	f.held = nil
	f.sockets.Unlock()
	for _, b := range held {
		f.forward(up, b)
	}
	return up, down, nil
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

// close closes the sockets and completes the record.
func (f *udpFlow) close() {
	f.sockets.Lock()
	up, down := f.up, f.down
	f.closed, f.held = true, nil
	f.sockets.Unlock()
	if up != nil {
		_ = up.Close() // closing twice is harmless
	}
	if down != nil {
		_ = down.Close()
	}
	f.finish(f.sent.Load(), f.received.Load())
}
