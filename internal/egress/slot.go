package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// state is what a slot was claimed for. It is immutable; a new policy is a new
// state.
type state struct {
	id         string
	meta       Meta
	policy     *Policy
	generation int64
	names      *names
	journal    *journal
	answers    *answers // that the resolver gave last
}

// slot is a pair of namespaces that this process serves. Until it is claimed it
// has no state and refuses everything.
type slot struct {
	gateway *Gateway
	state   atomic.Pointer[state]

	ns       netns.NsHandle // the gateway namespace, for more sockets there
	tcp      *net.TCPListener
	dns      *net.TCPListener
	udp      *net.UDPConn // DNS
	relay    *net.UDPConn // all other UDP
	icmp     *os.File     // a raw socket
	server   *http.Server
	gate     *gate
	connRate *rate.Limiter
	dnsRate  *rate.Limiter
	udpRate  *rate.Limiter   // bytes of flows that are not answered
	lookups  chan struct{}   // one for each DNS question that is being asked anew
	zones    zoneVerdicts    // about the names of such questions
	ctx      context.Context // ends when the slot is closed
	cancel   context.CancelFunc
	running  sync.WaitGroup
	relays   bool        // the rules let all UDP through to the relay; install's
	told     atomic.Bool // Broken has told of it
	holder   string      // who has slotDescriptors; empty until it is kept; keep sets it before anybody closes the slot

	mu       sync.Mutex // guards what follows
	flows    map[*flow]bool
	udpFlows map[udpKey]*udpFlow
	dnsUp    int // DNS connections that are open
	shut     bool
}

// newSlot opens the sockets in the gateway namespace and serves them.
func (g *Gateway) newSlot(p *pair) (*slot, error) {
	l := g.config.Limits
	s := &slot{
		gateway:  g,
		connRate: rate.NewLimiter(rate.Limit(l.ConnectionRate), int(2*l.ConnectionRate)+1),
		dnsRate:  rate.NewLimiter(rate.Limit(l.DNSRate), int(l.DNSRate)+1),
		udpRate:  rate.NewLimiter(rate.Limit(l.UDPRate), max(l.UDPRate/4, maxDatagram)),
		lookups:  make(chan struct{}, maxLookups),
		flows:    map[*flow]bool{},
		udpFlows: map[udpKey]*udpFlow{},
	}
	ns, err := unix.FcntlInt(uintptr(p.gateway), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, stepError("holding gateway namespace", err)
	}
	s.ns = netns.NsHandle(ns)
	if err := inNamespace(p.gateway, s.listen); err != nil {
		_ = s.ns.Close() // releases the descriptor whatever it returns
		return nil, stepError("listening in gateway namespace", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.gate = &gate{conns: make(chan net.Conn), closed: make(chan struct{}), addr: s.tcp.Addr()}
	s.server = s.newHTTPServer()
	s.running.Go(s.serveDNS)
	s.running.Go(s.serveRelay)
	s.running.Go(func() { s.accept(s.tcp, s.admitTCP) })
	s.running.Go(func() { s.accept(s.dns, s.admitDNS) })
	s.running.Go(func() { _ = s.server.Serve(s.gate) }) // ends with the gate
	return s, nil
}

// listen opens the sockets. They belong to the namespace of the calling
// thread for ever, and are used from any thread.
func (s *slot) listen() (err error) {
	defer func() {
		if err != nil {
			s.closeSockets()
		}
	}()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	open := func(port int) (*net.TCPListener, error) {
		l, err := lc.Listen(context.Background(), "tcp4", net.JoinHostPort(gatewayAddress, strconv.Itoa(port)))
		if err != nil {
			return nil, err
		}
		return l.(*net.TCPListener), nil
	}
	if s.tcp, err = open(gatewayPort); err != nil {
		return err
	}
	if s.dns, err = open(dnsPort); err != nil {
		return err
	}
	if s.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(gatewayAddress), Port: dnsPort}); err != nil {
		return err
	}
	return s.listenRelay()
}

func (s *slot) closeSockets() {
	// Nothing is to be done about an error of these.
	if s.tcp != nil {
		_ = s.tcp.Close()
	}
	if s.dns != nil {
		_ = s.dns.Close()
	}
	if s.udp != nil {
		_ = s.udp.Close()
	}
	if s.relay != nil {
		_ = s.relay.Close()
	}
	if s.icmp != nil {
		_ = s.icmp.Close()
	}
}

// accept hands each connection to handle until the listener is closed.
func (s *slot) accept(l *net.TCPListener, handle func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, mostly. Wait, or this loop takes a processor.
			select {
			case <-s.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		handle(c)
	}
}

// connection is a new one of the sandbox, to dest.
func (s *slot) connection(protocol string, dest netip.AddrPort, st *state) connection {
	return connection{gateway: s.gateway, protocol: protocol, dest: dest, start: s.gateway.now(), st: st}
}

// admitTCP starts a flow for a connection, within the session's limits.
func (s *slot) admitTCP(c *net.TCPConn) {
	st := s.state.Load()
	if st == nil {
		reset(c)
		return
	}
	dest, _ := originalDst(c) // without one it is refused
	f := &flow{connection: s.connection("tcp", dest, st), slot: s, client: c}
	f.cut = f.reset
	reason := s.admit(&f.connection, flowDescriptors,
		func() bool { return len(s.flows) < s.gateway.config.Limits.Connections }, func() { s.flows[f] = true })
	switch reason {
	case ReasonOK:
		go s.serve(&f.connection, f.run, flowDescriptors, func() { delete(s.flows, f) })
		return
	case ReasonRateLimit, ReasonConnectionLimit:
		f.record(Record{Reason: reason})
	}
	reset(c)
}

// admit decides on a connection of the sandbox and registers it, within the
// session's limits; room tells whether there may be one more of its kind.
// ReasonOK means that it is registered, whatever was decided: a program that is
// refused over TCP is to get an answer. room and register are called under mu.
func (s *slot) admit(c *connection, descriptors int64, room func() bool, register func()) Reason {
	if !s.connRate.Allow() {
		return ReasonRateLimit
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.st = s.state.Load() // under the lock: enforce either finds this connection or came before it
	c.host, c.choice = c.decide(c.st)
	switch {
	case !room():
		return ReasonConnectionLimit
	case s.shut:
		return ReasonSessionEnded
	case c.protocol == "udp" && c.choice.reason != ReasonOK:
		return c.choice.reason
	case !s.gateway.config.Descriptors.Take(c.st.id, descriptors):
		return ReasonConnectionLimit
	}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	register()
	s.running.Add(1)
	return ReasonOK
}

// serve runs an admitted connection to its end. A panic in it is this
// connection's end and nobody else's. forget is called under mu.
func (s *slot) serve(c *connection, run func(), descriptors int64, forget func()) {
	defer s.running.Done()
	defer func() {
		if p := recover(); p != nil {
			s.gateway.log.Error("panic while handling a connection", "session", c.st.id, "panic", p, "stack", string(debug.Stack()))
		}
		c.over()
		c.cancel()
		s.mu.Lock()
		forget()
		s.mu.Unlock()
		c.cut()
		s.gateway.config.Descriptors.Give(c.st.id, descriptors)
	}()
	run()
}

// connections are those of the sandbox that are registered. The caller holds mu.
func (s *slot) connections() []*connection {
	out := make([]*connection, 0, len(s.flows)+len(s.udpFlows))
	for f := range s.flows {
		out = append(out, &f.connection)
	}
	for _, f := range s.udpFlows {
		out = append(out, &f.connection)
	}
	return out
}

// admitDNS starts a DNS connection. A few are enough for any resolver.
func (s *slot) admitDNS(c *net.TCPConn) {
	const most = 16
	st := s.state.Load()
	if st == nil {
		reset(c)
		return
	}
	s.mu.Lock()
	ok := s.dnsUp < most && !s.shut && s.gateway.config.Descriptors.Take(st.id, dnsConnDescriptors)
	if ok {
		s.dnsUp++
		s.running.Add(1)
	}
	s.mu.Unlock()
	if !ok {
		reset(c)
		return
	}
	go func() {
		defer s.running.Done()
		stop := context.AfterFunc(s.ctx, func() { reset(c) })
		s.serveDNSConn(c)
		stop()
		s.mu.Lock()
		s.dnsUp--
		s.mu.Unlock()
		s.gateway.config.Descriptors.Give(st.id, dnsConnDescriptors)
	}()
}

// record completes a record about this network, keeps it, and tells the log and
// the metrics.
func (s *slot) record(st *state, r Record) *Record { return s.gateway.record(st, r) }

// close ends everything the slot does and waits until it has ended.
func (s *slot) close() {
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		s.running.Wait()
		return
	}
	s.shut = true
	open := s.connections()
	s.mu.Unlock()
	s.closeSockets()
	s.cancel()
	for _, c := range open {
		c.end(ReasonSessionEnded)
	}
	close(s.gate.closed)
	_ = s.server.Close()
	s.running.Wait()
	_ = s.ns.Close() // releases the descriptor whatever it returns
	if s.holder != "" {
		s.gateway.config.Descriptors.Give(s.holder, slotDescriptors)
	}
	if st := s.state.Load(); st != nil {
		st.names.close()
	}
}

// install makes a new state the slot's, and ends the connections it does not allow.
// After an error the old state stands. The caller lets nobody else install.
func (s *slot) install(st *state) error {
	if relays := st.policy.Mode() == ModeUnrestricted; relays != s.relays {
		// Whatever the rules let through is decided by the state, so that it does
		// not matter which of the two changes first.
		err := inNamespace(s.ns, func() error { return setRelay(relays) })
		if err != nil {
			return stepError("changing nf_tables rules", err)
		}
		s.relays = relays
	}
	s.state.Store(st)
	s.enforce()
	return nil
}

// enforce ends the connections that policy and operator do not allow any more.
// One that is admitted meanwhile is decided by what holds already.
func (s *slot) enforce() {
	st := s.state.Load()
	if st == nil {
		return
	}
	s.mu.Lock()
	open := s.connections()
	s.mu.Unlock()
	for _, c := range open {
		if !c.allowed(st) {
			c.end(ReasonPolicyChanged)
		}
	}
}
