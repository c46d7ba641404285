package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// echo answers datagrams at the world's address, "late" after a second datagram
// only, and returns the port.
func (w *world) echo() (port int, seen func() int) {
	w.t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: w.addr.AsSlice()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	var mu sync.Mutex
	n := 0
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			size, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
			if !bytes.HasPrefix(buf[:size], []byte("silence")) {
				_, _ = c.WriteToUDPAddrPort(buf[:size], from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).Port, func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// exchange sends a datagram and waits for the same back.
func exchange(c net.Conn, payload []byte) error {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(payload); err != nil {
		return err
	}
	buf := make([]byte, maxDatagram)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	if !bytes.Equal(buf[:n], payload) {
		return fmt.Errorf("%d bytes came back for %d", n, len(payload))
	}
	return nil
}

// E248–E251: under unrestricted, UDP goes to names and back, whole, and is one
// record.
func TestUDPRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port, _ := w.echo()
	w.know("udp.example.com", port)
	g := w.gateway(func(c *Config) { c.BlockHosts = []string{"blocked.example.com"}; c.BlockPorts = []int{port + 1} })
	b := w.open(g, "u", Spec{Mode: ModeUnrestricted})
	addr := b.resolve("udp.example.com")
	c, err := b.dial("udp", fmt.Sprintf("%s:%d", addr, port))
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, size := range []int{1, 48, 1472, 1473, 9000, 65507} {
		if err := exchange(c, bytes.Repeat([]byte("x"), size)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		total += size
	}
	// A second port is a second flow.
	again, err := b.dial("udp", fmt.Sprintf("%s:%d", addr, port))
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(again, []byte("second")); err != nil {
		t.Error(err)
	}
	if n := b.counts(); n[ReasonOK] != 2 || len(n) != 1 {
		t.Errorf("records %v", n)
	}
	for _, refused := range []struct {
		at   string
		want Reason
	}{
		{"10.0.0.5:4000", ReasonAddressNotPublic},
		{"169.254.100.1:4000", ReasonNoMapping},
		{"169.254.100.1:15002", ReasonNoMapping},
		{"198.18.200.200:4000", ReasonAddressNotPublic},
		{w.addr.String() + ":4000", ""}, // dropped on the wire: a loopback address
		{b.resolve("blocked.example.com") + ":4000", ReasonNameNotAllowed},
		{fmt.Sprintf("%s:%d", addr, port+1), ReasonBlocklisted},
		{addr + ":4000", ReasonAddressNotPublic}, // not the exempted port
	} {
		if refused.want == "" {
			continue
		}
		c, err := b.dial("udp", refused.at)
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(c, []byte("x")); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", refused.at, err)
		}
		if r := b.wantReason(refused.want); r.Protocol != "udp" || r.DestPort == 0 {
			t.Errorf("%s: %+v", refused.at, r)
		}
	}
	// Another policy ends the flows; a third one starts new ones.
	if err := g.Update(context.Background(), "u", mustCompile(t, Spec{Mode: ModeLimited, AllowedHosts: []string{"udp.example.com"}})); err != nil {
		t.Fatal(err)
	}
	b.wantReason(ReasonPolicyChanged)
	if err := exchange(c, []byte("x")); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("under limited: %v", err)
	}
	b.wantReason(ReasonUDPNotAllowed)
	eventually(t, "the bytes of the first flow", func() bool {
		rs, err := g.Records("u", Filter{Verdict: string(VerdictAllowed)})
		if err != nil {
			t.Fatal(err)
		}
		first := rs[len(rs)-1]
		return first.BytesUp == int64(total) && first.BytesDown == int64(total) && first.Rule == "unrestricted"
	})
	if err := g.Update(context.Background(), "u", mustCompile(t, Spec{Mode: ModeUnrestricted})); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, []byte("x")); err != nil {
		t.Errorf("under unrestricted again: %v", err)
	}
}

// A network that is reopened by the next server relays again, and keeps its
// records if the first one was shut down.
func TestUDPAfterRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port, _ := w.echo()
	w.know("udp.example.com", port)
	dir := t.TempDir()
	first := w.gateway(func(c *Config) { c.Dir = dir })
	b := w.open(first, "u", Spec{Mode: ModeUnrestricted})
	c, err := b.dial("udp", fmt.Sprintf("%s:%d", b.resolve("udp.example.com"), port))
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, []byte("before")); err != nil {
		t.Fatal(err)
	}
	if err := first.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, []byte("nobody")); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("without a server: %v", err)
	}
	b.g = w.gateway(func(c *Config) { c.Dir = dir })
	if _, err := b.g.Reopen(context.Background(), "u"); err != nil {
		t.Fatal(err)
	}
	if err := exchange(c, []byte("after")); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	rs, err := b.g.Records("u", Filter{Verdict: string(VerdictAllowed)})
	if err != nil || len(rs) != 2 || rs[1].BytesUp != 6 || rs[1].BytesDown != 6 || rs[0].ID <= rs[1].ID {
		t.Errorf("records %+v %v", rs, err)
	}
}

// E022: under limited, UDP is refused at once, and that is recorded.
func TestE022Refused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.limited("ok.example.com")
	for _, at := range []string{"203.0.113.9:443", b.resolve("ok.example.com") + ":443", "198.18.0.1:123", "169.254.100.1:4000"} {
		c, err := b.dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // more than the kernel would answer with its usual limit
			if err := exchange(c, []byte("x")); !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("%s: %v", at, err)
			}
		}
	}
	eventually(t, "a record of each", func() bool {
		rs, err := b.g.Records(b.id, Filter{})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range rs {
			if r.Reason == ReasonUDPNotAllowed && r.Protocol == "udp" {
				n++
			}
		}
		return n == 4
	})
}

// E251: flows are capped, expire, and a flood that nobody answers is held.
func TestE251UDPLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port, seen := w.echo()
	w.know("udp.example.com", port)
	g := w.gateway(func(c *Config) {
		c.Limits.UDPFlows, c.Limits.UDPUnanswered, c.Limits.UDPIdle, c.Limits.UDPRate = 4, 300*time.Millisecond, 600*time.Millisecond, 1000
	})
	b := w.open(g, "u", Spec{Mode: ModeUnrestricted})
	at := fmt.Sprintf("%s:%d", b.resolve("udp.example.com"), port)
	for range 6 {
		c, err := b.dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("silence")); err != nil {
			t.Fatal(err)
		}
	}
	b.wantReason(ReasonConnectionLimit)
	slot := g.live("u")
	eventually(t, "no flow", func() bool {
		slot.mu.Lock()
		defer slot.mu.Unlock()
		return len(slot.udpFlows) == 0
	})
	if n := seen(); n != 4 {
		t.Errorf("%d datagrams arrived, want 4", n)
	}
	c, err := b.dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	flood := append([]byte("silence"), make([]byte, 8000)...)
	for range 20 {
		_, _ = c.Write(flood)
	}
	b.wantReason(ReasonRateLimit)
	if n := seen() - 4; n > 9 { // the burst is 64 KiB
		t.Errorf("%d of 20 datagrams of a flood arrived", n)
	}
}

// A raw address that is public is relayed to, and only its peer is heard.
func TestE250OnlyThePeer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	peer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: w.addr.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	port := peer.LocalAddr().(*net.UDPAddr).Port
	w.know("udp.example.com", port)
	b := w.open(w.gateway(nil), "u", Spec{Mode: ModeUnrestricted})
	c, err := b.dial("udp", fmt.Sprintf("%s:%d", b.resolve("udp.example.com"), port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = peer.SetDeadline(time.Now().Add(10 * time.Second))
	_, relay, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, _ = stranger.Write([]byte("stranger")) // refused, perhaps only at the next write
	if _, err := peer.WriteToUDPAddrPort([]byte("peer"), relay); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "peer" {
		t.Errorf("%q %v", buf[:n], err)
	}
	raw, err := b.dial("udp", "203.0.113.7:4000")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = raw.Write([]byte("x"))
	eventually(t, "a record of the raw address", func() bool {
		r := b.record()
		return r.DestAddress == "203.0.113.7" && r.Host == "" && r.Verdict != VerdictRefused
	})
}

// FuzzUDP: whatever arrives, in whatever order, the guard is asked about each
// destination, and there are never more flows than the limit. The slot has no
// namespace to answer from, so that no flow gets as far as sending.
func FuzzUDP(f *testing.F) {
	for _, to := range []string{
		"\xcb\x00\x71\x07\x10\x00\x00\x01", "\x0a\x00\x00\x05\x10\x00\x00\x01", "\xc6\x12\x01\x00\x01\xbb\x00\x01", "\xc6\x12\x00\x01\x01\xbb\x00\x01", // public, private, a name's, the refusal address
		"\xa9\xfe\xa9\xfe\x00\x50\x00\x01", "\x7f\x00\x00\x01\x00\x35\x00\x01", "\xe0\x00\x00\x01\x14\xe9\x00\x01", "\xff\xff\xff\xff\x00\x43\x00\x01", "\xcb\x00\x71\x07\x00\x19\x00\x01", // E255, E252, port 25
	} {
		f.Add([]byte(to+to), true)
		f.Add([]byte(to), false)
	}
	many := []byte{}
	for i := range 40 {
		many = append(many, 203, 0, 113, byte(i), 0x10, 0, 0, 1)
	}
	f.Add(many, true)
	const limit = 4
	slots := map[bool]*slot{}
	for unrestricted, mode := range map[bool]Mode{true: ModeUnrestricted, false: ModeLimited} {
		s := bareSlot(f, Spec{Mode: mode}, &fakeResolver{hosts: map[string][]string{"ok.example.com.": {"10.0.0.1"}}}, Limits{UDPFlows: limit}, nil)
		if err := s.state.Load().names.list([]Host{mustHost(f, "ok.example.com")}); err != nil {
			f.Fatal(err)
		}
		s.ns, s.udpFlows, s.udpRate = netns.None(), map[udpKey]*udpFlow{}, rate.NewLimiter(rate.Inf, 1)
		slots[unrestricted] = s
	}
	f.Fuzz(func(t *testing.T, in []byte, unrestricted bool) {
		s := slots[unrestricted]
		st := *s.state.Load()
		st.journal = &journal{}
		s.state.Store(&st)
		asked := map[string]bool{} // destination → whether it is public
		for ; len(in) >= 8; in = in[8:] {
			dest := netip.AddrPortFrom(netip.AddrFrom4([4]byte(in[:4])), uint16(in[4])<<8|uint16(in[5]))
			key := udpKey{uint16(in[6])<<8 | uint16(in[7]), dest}
			asked[dest.String()] = ranges(notPublic()).public(dest.Addr())
			s.datagram(key, in)
			s.mu.Lock()
			if len(s.udpFlows) > limit {
				t.Errorf("%d flows", len(s.udpFlows))
			}
			s.mu.Unlock()
			p := portUnreachable(key)
			if inetChecksum(p[:20]) != 0 || inetChecksum(p[20:]) != 0 || len(p) != 56 {
				t.Fatalf("message about %v is damaged: %x", key, p)
			}
		}
		s.running.Wait()
		for _, r := range st.journal.list(Filter{}) {
			public := asked[net.JoinHostPort(r.DestAddress, fmt.Sprint(r.DestPort))]
			switch {
			case r.Reason == ReasonOK:
				t.Errorf("passed: %+v", r)
			case !unrestricted && r.Reason != ReasonUDPNotAllowed:
				t.Errorf("under limited: %+v", r)
			case r.Reason == ReasonConnectFailed && (!public || r.Host != ""): // the step after the guard
				t.Errorf("the guard let it pass: %+v", r)
			}
		}
	})
}

// Whatever the kernel's control message is, an address comes only out of a
// whole one.
func FuzzOriginalUDP(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x14\x00\x00\x00\x02\x00\x01\xbb\xc6\x12\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, oob []byte) {
		at, ok := originalUDP(oob)
		if ok && (len(oob) < unix.SizeofCmsghdr+unix.SizeofSockaddrInet4 || !at.Addr().Is4()) {
			t.Fatalf("%s out of %x", at, oob)
		}
	})
}
