package security

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// internet is the namespace that the host's default route leads to. It takes
// every address of both families for its own. Each stand owns a /16 of it; a
// packet to any other address is a stray, and no test may cause one.
type internet struct {
	ns netns.NsHandle

	mu       sync.Mutex // guards what follows
	stands   []*stand   // index i owns 20.i.0.0/16 and 2a0d:0:i::/48
	claims   map[netip.Prefix]*stand
	handlers map[netip.AddrPort]func(net.Conn)
	strays   []string
	marks    map[uint16]chan struct{}
	mark     uint16
}

// world is the one internet of this process. It is set before any test runs.
var world *internet

// onThread runs f in a namespace, on a thread that ends with it.
func onThread(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never destroyed, and gVisor takes its namespace
			// for the process's.
			err := onThread(ns, f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

func makeInternet() error {
	w := &internet{ns: netns.None(), claims: map[netip.Prefix]*stand{}, handlers: map[netip.AddrPort]func(net.Conn){}, marks: map[uint16]chan struct{}{}}
	host, err := netns.Get()
	if err != nil {
		return err
	}
	err = onThread(netns.None(), func() error {
		ns, err := netns.New()
		w.ns = ns
		return err
	})
	if err != nil {
		return fmt.Errorf("making the internet: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "wan0", wanMAC(1)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "inet0", PeerHardwareAddr: wanMAC(2), PeerNamespace: netlink.NsFd(w.ns)}); err != nil {
		return fmt.Errorf("making the way to the internet: %w", err)
	}
	if err := sideOfLink("wan0", "100.64.0.1/30", "fd64::1/64", "100.64.0.2", "fd64::2"); err != nil {
		return fmt.Errorf("making the way to the internet: %w", err)
	}
	err = onThread(w.ns, func() error {
		if err := sideOfLink("inet0", "100.64.0.2/30", "fd64::2/64", "", ""); err != nil {
			return err
		}
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			_, dst, _ := net.ParseCIDR(all)
			// In the main table, below the route to the host.
			r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_HOST}
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("route %s: %w", all, err)
			}
		}
		return w.listen()
	})
	if err != nil {
		return fmt.Errorf("making the internet: %w", err)
	}
	_ = host.Close()
	world = w
	return w.traps()
}

// hostPublic is a public address of the host itself.
const hostPublic = "185.10.20.30"

// traps are services of the host: nothing in a sandbox may ever reach one.
func (w *internet) traps() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(hostPublic + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, a); err != nil {
		return err
	}
	for _, port := range trapPorts() {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.stray("a service of the host was reached: " + c.LocalAddr().String())
				_ = c.Close()
			}
		}()
		u, err := net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 2048)
			for {
				if _, _, err := u.ReadFrom(buf); err != nil {
					return
				}
				w.stray(fmt.Sprintf("a service of the host was reached: udp %d", port))
			}
		}()
	}
	return nil
}

func trapPorts() []int { return []int{22, 53, 80, 443, 8400} }

func (w *internet) stray(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.strays = append(w.strays, what)
}

func wanMAC(end byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, end} }

// sideOfLink sets up one end of the link between host and internet.
func sideOfLink(name, v4, v6, gw4, gw6 string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, text := range []string{v4, v6} {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	// A fixed neighbour at the other end: the kernel's table of them is shared by
	// all namespaces, and may be full.
	neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("100.64.0.1"), HardwareAddr: wanMAC(1)}
	if gw4 != "" {
		neighbour.IP, neighbour.HardwareAddr = net.ParseIP(gw4), wanMAC(2)
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return err
	}
	for _, gw := range []string{gw4, gw6} {
		if gw == "" {
			continue
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
			return err
		}
	}
	return nil
}

// webPorts take TLS or plain HTTP, as the client begins; bannerPorts speak first
// and echo then.
func webPorts() []int    { return []int{80, 443, 8080, 8443, 9443} }
func bannerPorts() []int { return []int{22, 25, 465, 587, 853, 3306, 5432} }

// listen opens the internet's sockets. The calling thread is in its namespace.
func (w *internet) listen() error {
	for _, port := range webPorts() {
		if err := w.listenOn(port, serveWeb); err != nil {
			return err
		}
	}
	for _, port := range bannerPorts() {
		if err := w.listenOn(port, serveBanner); err != nil {
			return err
		}
	}
	return w.sniff()
}

func (w *internet) listenOn(port int, serve func(*stand, net.Conn)) error {
	l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				at := addrPort(c.LocalAddr())
				owner := w.owner(at.Addr())
				w.mu.Lock()
				handler := w.handlers[at]
				w.mu.Unlock()
				switch {
				case handler != nil:
					handler(c)
				case owner != nil:
					serve(owner, c)
				}
			}()
		}
	}()
	return nil
}

// handle lets f serve what connects to an address of the internet.
func (w *internet) handle(at netip.AddrPort, f func(net.Conn)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handlers[at] = f
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	case *net.UDPAddr:
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// owner is the stand that an address belongs to, or nil.
func (w *internet) owner(a netip.Addr) *stand {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := -1
	if b := a.As16(); a.Is4() && b[12] == 20 {
		i = int(b[13])
	} else if a.Is6() && b[0] == 0x2a && b[1] == 0x0d {
		i = int(b[5])
	}
	if i >= 0 && i < len(w.stands) {
		return w.stands[i]
	}
	for p, s := range w.claims {
		if p.Contains(a) {
			return s
		}
	}
	return nil
}

// join gives a stand its part of the internet.
func (w *internet) join(s *stand) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stands = append(w.stands, s)
	if len(w.stands) > 256 {
		panic("too many stands")
	}
	return len(w.stands) - 1
}

// claim makes further addresses a stand's own, until the returned function is
// called.
func (w *internet) claim(s *stand, ranges ...string) (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range ranges {
		w.claims[netip.MustParsePrefix(text)] = s
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, text := range ranges {
			delete(w.claims, netip.MustParsePrefix(text))
		}
	}
}

// sniff watches what the host sends into the internet: the first packet of each
// TCP connection, and every packet of anything else.
func (w *internet) sniff() error {
	all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return err
	}
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x0800, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x86dd, SkipTrue: 7, SkipFalse: 11},
		bpf.LoadAbsolute{Off: 23, Size: 1}, // IPv4
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipFalse: 10},
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 14 + 13, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x12},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x02, SkipTrue: 6, SkipFalse: 5},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 20, Size: 1}, // IPv6
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 58, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipFalse: 2},
		bpf.Jump{Skip: 2},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 128},
		bpf.LoadAbsolute{Off: 14 + 40 + 13, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x12},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x02, SkipFalse: 1},
		bpf.RetConstant{Val: 128},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		raw[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}); err != nil {
		return err
	}
	link, err := net.InterfaceByName("inet0")
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: uint16(all)}); err != nil {
		return err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "test/security: the sniffer ended:", err)
				return
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			w.packet(buf[:n])
		}
	}()
	return nil
}

// packet notes one packet that the host sent.
func (w *internet) packet(f []byte) {
	if len(f) < 34 {
		return
	}
	var dst netip.Addr
	proto, at := f[23], 14+int(f[14]&15)*4
	if binary.BigEndian.Uint16(f[12:]) == 0x86dd {
		dst, proto, at = netip.AddrFrom16([16]byte(f[38:54])), f[20], 54
	} else {
		dst = netip.AddrFrom4([4]byte(f[30:34]))
	}
	port := uint16(0)
	if (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && len(f) >= at+4 {
		port = binary.BigEndian.Uint16(f[at+2:])
	}
	if proto == unix.IPPROTO_TCP && endsOnly(f, at) {
		return // it may come at any time after its case has looked
	}
	if dst.IsMulticast() && dst.Is6() {
		return // the host's own neighbour discovery
	}
	if dst == resolverAddress() {
		return // the host's own questions
	}
	if dst == markAddress() {
		w.mu.Lock()
		if c := w.marks[port]; c != nil {
			close(c)
			delete(w.marks, port)
		}
		w.mu.Unlock()
		return
	}
	kind := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[proto]
	if kind == "" {
		kind = fmt.Sprintf("protocol-%d", proto)
		if proto == unix.IPPROTO_ICMP && len(f) > at && f[at] == 3 {
			return // this host's own error message to a peer
		}
	}
	what := fmt.Sprintf("%s %s", kind, netip.AddrPortFrom(dst, port))
	if s := w.owner(dst); s != nil {
		s.sniffed(kind, netip.AddrPortFrom(dst, port))
		return
	}
	w.stray(what)
}

// endsOnly tells whether a TCP segment opens nothing and carries nothing: an
// acknowledgement, a FIN or a reset of a connection that was noted when it began.
func endsOnly(f []byte, at int) bool {
	if len(f) < at+14 || f[at+13]&2 != 0 { // SYN
		return false
	}
	end := 14 + int(binary.BigEndian.Uint16(f[16:])) // IPv4: the frame may be padded
	if binary.BigEndian.Uint16(f[12:]) == 0x86dd {
		end = 54 + int(binary.BigEndian.Uint16(f[18:]))
	}
	return end <= at+int(f[at+12]>>4)*4
}

// resolverAddress is where the host's own resolver is, for tests that use it.
func resolverAddress() netip.Addr { return netip.MustParseAddr("20.255.255.53") }

func markAddress() netip.Addr { return netip.MustParseAddr("20.255.255.254") }

// settle returns when every packet that was sent before is noted: it sends one
// itself from each processor, and waits until those are. One would not do: what
// crosses a veth pair waits in a queue of the processor that sent it, so that
// a packet of one processor overtakes what another has not delivered yet.
func (w *internet) settle() {
	var all sync.WaitGroup
	for _, cpu := range processors() {
		all.Go(func() { w.settleOn(cpu) })
	}
	all.Wait()
}

// processors are those that this process may run on.
func processors() (cpus []int) {
	var set unix.CPUSet
	must(unix.SchedGetaffinity(os.Getpid(), &set))
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// settleOn is settle for what one processor sent.
func (w *internet) settleOn(cpu int) {
	w.mu.Lock()
	w.mark = w.mark%60000 + 1
	port, seen := w.mark, make(chan struct{})
	w.marks[port] = seen
	w.mu.Unlock()
	for {
		// One that cannot be sent is sent again.
		_ = onThread(netns.None(), func() error { return markFrom(cpu, netip.AddrPortFrom(markAddress(), port)) })
		select {
		case <-seen:
			return
		case <-time.After(time.Second):
		}
	}
}

// markFrom sends a mark from one processor. It leaves the calling thread
// bound to that processor.
func markFrom(cpu int, to netip.AddrPort) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("mark"))
	return errors.Join(err, c.Close())
}

// takeStrays returns and forgets the packets that nobody owned.
func (w *internet) takeStrays() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.strays
	w.strays = nil
	return out
}

// udpEcho answers datagrams to an address of the internet with what they held
// after a mark, until ctx ends.
func (w *internet) udpEcho(ctx context.Context, at netip.AddrPort, saw func(peer netip.AddrPort, data []byte)) error {
	var c *net.UDPConn
	err := onThread(w.ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			saw(from, buf[:n])
			_, _ = c.WriteToUDPAddrPort(append([]byte("echo:"), buf[:n]...), from)
		}
	}()
	return nil
}
