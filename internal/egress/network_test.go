package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The tests of this file run the client in the runtime namespace with every
// capability. Each is named for its number in the test matrix.

func TestRawAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")

	t.Run("E001", func(t *testing.T) {
		_, err := b.tls(b.mustDial("203.0.113.9:443"), "x.example.com")
		if err == nil || !strings.Contains(err.Error(), "access denied") {
			t.Errorf("got %v, want an alert", err)
		}
		if r := b.wantReason(ReasonNoMapping); r.DestAddress != "203.0.113.9" || r.ClaimedHost != "x.example.com" || r.Protocol != "tls" {
			t.Errorf("record %+v", r)
		}
	})
	t.Run("E002", func(t *testing.T) {
		code, body, header, err := b.get("http://203.0.113.9/")
		if err != nil || code != 403 || !strings.Contains(body, "203.0.113.9:80") || header.Get("x-deny-reason") != "host_not_allowed" {
			t.Errorf("got %d %q %v %v", code, body, header, err)
		}
	})
	t.Run("E003", func(t *testing.T) {
		for _, port := range []int{22, 853, 8080, 65535} {
			if err := b.closed(fmt.Sprintf("203.0.113.9:%d", port)); !isReset(err) {
				t.Errorf("port %d: %v, want a reset", port, err)
			}
		}
	})
	t.Run("E004", func(t *testing.T) {
		if _, err := b.tls(b.mustDial("203.0.113.9:443"), "ok.example.com"); err == nil {
			t.Error("an allowed name opened a raw address")
		}
		b.wantReason(ReasonNoMapping)
	})
	t.Run("E005", func(t *testing.T) {
		out, err := raw(b.mustDial("203.0.113.9:80"), "GET / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n")
		if err != nil || !strings.HasPrefix(out, "HTTP/1.1 403 ") || !strings.Contains(out, "203.0.113.9:80") {
			t.Errorf("got %q %v", out, err)
		}
	})
	t.Run("E006", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			for _, a := range []string{"[2606:4700:4700::1111]:443", "[64:ff9b::808:808]:443", "[2002:808:808::1]:443", "[fd00:ec2::254]:80"} { // E008, E010
				start := time.Now()
				if _, err := b.dial(network, a); err == nil {
					t.Errorf("%s %s: connected", network, a)
				}
				if d := time.Since(start); d > 2*time.Second {
					t.Errorf("%s %s: took %s", network, a, d)
				}
			}
		}
	})
	t.Run("E009", func(t *testing.T) {
		for _, a := range []string{"169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192"} { // E011
			code, body, _, err := b.get("http://" + a + "/latest/meta-data/")
			if err != nil || code != 403 || !strings.Contains(body, a) {
				t.Errorf("%s: %d %q %v", a, code, body, err)
			}
		}
	})
	t.Run("E012", func(t *testing.T) {
		for _, port := range []int{1, 22, 80, 443, 8400, gatewayPort} {
			c, err := b.dial("tcp", fmt.Sprintf("169.254.100.1:%d", port))
			if err != nil {
				continue // reset before connect returned
			}
			_ = c.SetDeadline(time.Now().Add(8 * time.Second))
			out, _ := raw(c, "GET / HTTP/1.1\r\nHost: ok.example.com\r\n\r\n")
			if out != "" && !strings.HasPrefix(out, "HTTP/1.1 403 ") {
				t.Errorf("port %d: %q", port, out)
			}
		}
		b.wantReason(ReasonNoMapping)
	})
	t.Run("E014", func(t *testing.T) {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLoopback() {
				continue
			}
			for _, port := range []int{22, 80, 8400} {
				c, err := b.dial("tcp", fmt.Sprintf("%s:%d", a.IP, port))
				if err != nil {
					continue
				}
				_ = c.SetDeadline(time.Now().Add(8 * time.Second))
				if out, _ := raw(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); out != "" && !strings.HasPrefix(out, "HTTP/1.1 403 ") {
					t.Errorf("%s:%d: %q", a.IP, port, out)
				}
			}
		}
	})
	t.Run("E017", func(t *testing.T) {
		// The upstreams listen on the host's loopback; E224.
		for _, a := range []string{w.addr.String(), "127.0.0.1", "0.0.0.0"} {
			if c, err := b.dial("tcp", a+":80"); err == nil {
				t.Errorf("%s: connected to %s", a, c.RemoteAddr())
			}
		}
	})
	t.Run("E018", func(t *testing.T) {
		if code, body, _, err := b.get("http://198.18.77.7/"); err != nil || code != 403 {
			t.Errorf("got %d %q %v", code, body, err)
		}
		b.wantReason(ReasonNoMapping)
	})
	t.Run("E022", func(t *testing.T) {
		for _, a := range []string{"203.0.113.9:443", "203.0.113.9:123", b.resolve("ok.example.com") + ":443", "169.254.100.1:5353"} {
			c, err := b.dial("udp", a)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			start := time.Now()
			_, _ = c.Write([]byte("x"))
			_, err = c.Read(make([]byte, 10))
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%s: %v after %s, want port unreachable", a, err, time.Since(start))
			}
		}
	})
	t.Run("E024", func(t *testing.T) {
		out, err := exec.Command("nsenter", "--net="+b.path, "ping", "-c1", "-W1", "169.254.100.1").CombinedOutput()
		if err == nil {
			t.Errorf("ping answered: %s", out)
		}
	})
	t.Run("E034", func(t *testing.T) {
		for port, want := range map[int]string{80: "HTTP/1.1 403 ", 443: "HTTP/1.1 403 ", 22: "", 5432: ""} {
			addr := fmt.Sprintf("198.18.0.1:%d", port)
			if want == "" {
				if err := b.closed(addr); !isReset(err) {
					t.Errorf("port %d: %v, want a reset", port, err)
				}
				continue
			}
			out, err := raw(b.mustDial(addr), "GET / HTTP/1.1\r\nHost: no.example.com\r\n\r\n")
			if !strings.HasPrefix(out, want) {
				t.Errorf("port %d: %q %v", port, out, err)
			}
		}
	})
	if seen := w.upstream(); len(seen) != 0 {
		t.Errorf("upstreams saw %q", seen)
	}
	if asked := w.resolver.questions(); len(asked) != 0 {
		t.Errorf("the resolver was asked for %q", asked)
	}
}

// E007: an IPv6 socket with a mapped address goes as over IPv4.
func TestE007MappedSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com")
	connect := func(addr string) string {
		var out []byte
		err := b.in(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			to := &unix.SockaddrInet6{Port: 80, Addr: netip.MustParseAddr(addr).As16()}
			if err := unix.Connect(fd, to); err != nil {
				return err
			}
			if _, err := unix.Write(fd, []byte("GET / HTTP/1.0\r\nHost: ok.example.com\r\n\r\n")); err != nil {
				return err
			}
			buf := make([]byte, 500)
			n, err := unix.Read(fd, buf)
			out = buf[:max(n, 0)]
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := connect(b.resolve("ok.example.com")); !strings.Contains(out, "200 OK") {
		t.Errorf("to the name's address: %q", out)
	}
	if out := connect("203.0.113.9"); !strings.Contains(out, "403 Forbidden") {
		t.Errorf("to a raw address: %q", out)
	}
}

// frame is an Ethernet frame with an IPv4 datagram to the stub.
func frame(src, dst string, etherType []byte) []byte {
	q := question(&testing.T{}, "localhost", dnsmessage.TypeA)
	udp := make([]byte, 8, 8+len(q))
	udp[0], udp[1], udp[3] = 0x9c, 0x40, 53
	udp[4], udp[5] = 0, byte(8+len(q)) // no checksum, which IPv4 allows
	udp = append(udp, q...)
	var out []byte
	out = append(out, gatewayMAC()...)
	out = append(out, sandboxMAC()...)
	out = append(out, etherType...)
	return append(out, ipPacket(netip.MustParseAddr(src), netip.MustParseAddr(dst), 17, udp)...)
}

// synFrame is an Ethernet frame with the first packet of a TCP connection.
func synFrame(to netip.Addr, from, port uint16) []byte {
	src := netip.MustParseAddr(sandboxAddress)
	syn := make([]byte, 20)
	binary.BigEndian.PutUint16(syn, from)
	binary.BigEndian.PutUint16(syn[2:], port)
	syn[12], syn[13], syn[14] = 5<<4, 2, 0xff
	pseudo := append(append(src.AsSlice(), to.AsSlice()...), 0, 6, 0, byte(len(syn)))
	binary.BigEndian.PutUint16(syn[16:], checksum(append(pseudo, syn...)))
	out := append(append([]byte{}, gatewayMAC()...), sandboxMAC()...)
	return append(append(out, 8, 0), ipPacket(src, to, 6, syn)...)
}

func ipPacket(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	ip := make([]byte, 20, 20+len(payload))
	ip[0], ip[3], ip[8], ip[9] = 0x45, byte(20+len(payload)), 64, protocol
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(ip, payload...)
}

// checksum is that of IPv4 and TCP, over an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// rawLink opens a packet socket on the sandbox's link, in whose namespace the
// calling thread is.
func rawLink() (fd int, at *unix.SockaddrLinklayer, err error) {
	proto := uint16(unix.ETH_P_IP)
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto<<8|proto>>8)); err != nil {
		return -1, nil, err
	}
	link, err := netlink.LinkByName(sandboxLink)
	if err == nil {
		at = &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: proto<<8 | proto>>8}
		err = unix.Bind(fd, at)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, nil, err
	}
	return fd, at, nil
}

// rawSender sends frames as a sandbox with raw sockets could.
func rawSender() (send func([]byte) error, done func(), err error) {
	fd, at, err := rawLink()
	if err != nil {
		return nil, nil, err
	}
	return func(f []byte) error {
		if err := unix.Sendto(fd, f, 0, at); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		return nil
	}, func() { _ = unix.Close(fd) }, nil
}

// E026, E027, E031: what raw frames can do.
func TestPacketSockets(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.limited()
	exchange := func(f []byte) bool {
		got := false
		err := b.in(func() error {
			fd, at, err := rawLink()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Sendto(fd, f, 0, at); err != nil {
				return err
			}
			tv := unix.Timeval{Usec: 200_000}
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return err
			}
			buf := make([]byte, 2000)
			for range 20 {
				n, err := unix.Read(fd, buf)
				if err != nil {
					return nil
				}
				// An answer of the stub to our port.
				if n > 42 && buf[23] == 17 && buf[35] == 53 && buf[36] == 0x9c && buf[37] == 0x40 {
					got = true
					return nil
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	ip := []byte{8, 0}
	for name, tt := range map[string]struct {
		frame []byte
		want  bool
	}{
		"own address":               {frame("169.254.100.2", "169.254.100.1", ip), true},
		"own address, any server":   {frame("169.254.100.2", "203.0.113.53", ip), true},
		"E027 another source":       {frame("169.254.100.3", "169.254.100.1", ip), false},
		"E027 the gateway's source": {frame("169.254.100.1", "169.254.100.1", ip), false},
		"E027 a public source":      {frame("203.0.113.5", "169.254.100.1", ip), false},
		"E031 loopback":             {frame("169.254.100.2", "127.0.0.1", ip), false},
		"E016 multicast":            {frame("169.254.100.2", "224.0.0.1", ip), false},
		"E026 VLAN":                 {frame("169.254.100.2", "169.254.100.1", []byte{0x81, 0, 0, 5, 8, 0}), false},
		"E026 unknown type":         {frame("169.254.100.2", "169.254.100.1", []byte{0x88, 0xb5}), false},
		"E026 IPv6 type":            {frame("169.254.100.2", "169.254.100.1", []byte{0x86, 0xdd}), false},
	} {
		if got := exchange(tt.frame); got != tt.want {
			t.Errorf("%s: answered %v, want %v", name, got, tt.want)
		}
	}
}

func TestDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	b := w.limited("ok.example.com", "*.wild.example.com")

	t.Run("E041", func(t *testing.T) {
		if got := b.resolve("ok.example.com"); got != "198.18.1.0" {
			t.Errorf("got %s", got)
		}
		if a, again := b.resolve("a.wild.example.com"), b.resolve("A.Wild.example.com"); a != again || a == "198.18.1.0" { // E053, E061
			t.Errorf("got %s and %s", a, again)
		}
	})
	t.Run("E042", func(t *testing.T) {
		for _, name := range []string{"no.example.com", "wild.example.com", "a.ok.example.com", "single"} {
			if got := b.resolve(name); got != "198.18.0.1" {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
	t.Run("E043", func(t *testing.T) {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB, dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeCNAME} { // E045
			for _, name := range []string{"ok.example.com", "no.example.com"} {
				m, err := b.ask("169.254.100.1:53", name, kind)
				if err != nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
					t.Errorf("%s %s: %v %v %v", kind, name, m.RCode, m.Answers, err)
				}
			}
		}
	})
	t.Run("E044", func(t *testing.T) {
		for _, server := range []string{"8.8.8.8:53", "1.1.1.1:53", "203.0.113.53:53", "169.254.100.1:53"} {
			m, err := b.ask(server, "ok.example.com", dnsmessage.TypeA)
			if err != nil || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{198, 18, 1, 0} {
				t.Errorf("%s: %v %v", server, m.Answers, err)
			}
		}
	})
	t.Run("E049", func(t *testing.T) {
		c := b.mustDial("8.8.4.4:53") // E033
		q := question(t, "ok.example.com", dnsmessage.TypeA)
		for range 3 {
			for _, part := range [][]byte{{0}, {byte(len(q))}, q} {
				if _, err := c.Write(part); err != nil {
					t.Fatal(err)
				}
			}
			head := make([]byte, 2)
			if _, err := io.ReadFull(c, head); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, int(head[0])<<8|int(head[1]))
			if _, err := io.ReadFull(c, answer); err != nil || !bytes.Contains(answer, []byte{198, 18, 1, 0}) {
				t.Fatalf("%x %v", answer, err)
			}
		}
		if out, _ := raw(b.mustDial("8.8.4.4:53"), "\xff\xff"+strings.Repeat("x", 5000)); out != "" {
			t.Errorf("a huge message was answered: %q", out)
		}
	})
	t.Run("E056", func(t *testing.T) {
		m, err := b.ask("169.254.100.1:53", "0.1.18.198.in-addr.arpa", dnsmessage.TypePTR)
		if err != nil || m.RCode != dnsmessage.RCodeNameError {
			t.Errorf("PTR: %v %v", m.RCode, err)
		}
		for _, name := range []string{"localhost", "a.localhost"} {
			if got := b.resolve(name); got != "127.0.0.1" {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
	t.Run("E051", func(t *testing.T) {
		for _, name := range []string{"a b.example.com", "2130706433", "0x7f.1", "-a.example.com"} { // E021
			m, err := b.ask("169.254.100.1:53", name, dnsmessage.TypeA)
			if err != nil || m.RCode != dnsmessage.RCodeNameError {
				t.Errorf("%q: %v %v", name, m.RCode, err)
			}
		}
		all, err := b.g.Records(b.id, Filter{Limit: 1})
		if err != nil || len(all) != 1 || all[0].ClaimedHost != "invalid" || all[0].Count < 3 {
			t.Errorf("records %+v %v", all, err)
		}
	})
	if asked := w.resolver.questions(); len(asked) != 0 {
		t.Errorf("the resolver was asked for %q", asked)
	}
}

// E050: the names that a policy lists have their address, whatever a flood does.
func TestE050NameLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "ok.example.com")
	g := w.gateway(func(c *Config) { c.Limits.Names = 5 })
	b := w.open(g, "n", Spec{Mode: ModeLimited, AllowedHosts: []string{"ok.example.com", "*.wild.example.com"}})
	failed := 0
	for i := range 8 {
		m, err := b.ask("169.254.100.1:53", fmt.Sprintf("n%d.wild.example.com", i), dnsmessage.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if m.RCode == dnsmessage.RCodeServerFailure {
			failed++
		}
	}
	if failed != 3 {
		t.Errorf("%d of 8 names failed, want 3", failed)
	}
	if got := b.resolve("ok.example.com"); got != "198.18.1.0" {
		t.Errorf("listed host: %s", got)
	}
	if got := b.resolve("n0.wild.example.com"); got != "198.18.1.1" {
		t.Errorf("earlier name: %s", got)
	}
	rs, err := g.Records("n", Filter{Verdict: "refused"})
	if err != nil || len(rs) != 1 || rs[0].Reason != ReasonNameLimit || rs[0].Count != 3 {
		t.Errorf("records %+v %v", rs, err)
	}
}

// E219: two sessions with the same addresses, each with its own policy.
func TestE219TwoSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a.example.com", "b.example.com")
	g := w.gateway(func(c *Config) { c.PoolSize = 1 })
	a := w.open(g, "a", Spec{Mode: ModeLimited, AllowedHosts: []string{"a.example.com"}})
	b := w.open(g, "b", Spec{Mode: ModeLimited, AllowedHosts: []string{"b.example.com"}})
	for range 3 {
		for _, tt := range []struct {
			box  *box
			host string
			code int
		}{{a, "a.example.com", 200}, {b, "a.example.com", 403}, {a, "b.example.com", 403}, {b, "b.example.com", 200}} {
			code, body, _, err := tt.box.get("http://" + tt.host + "/")
			if err != nil || code != tt.code {
				t.Errorf("%s to %s: %d %q %v", tt.box.id, tt.host, code, body, err)
			}
		}
	}
	// E015, E019: the other's addresses are one's own or nobody's.
	if got := a.resolve("a.example.com"); got != b.resolve("b.example.com") {
		t.Errorf("addresses differ: %s", got)
	}
	for _, id := range []string{"a", "b"} {
		rs, err := g.Records(id, Filter{Verdict: "allowed"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if r.SessionID != id || r.Host != id+".example.com" {
				t.Errorf("record of %s: %+v", id, r)
			}
		}
		if len(rs) != 3 {
			t.Errorf("%s: %d records", id, len(rs))
		}
	}
}

// ::1 is the sandbox's own, for servers that bind it. Nothing else has IPv6, on
// either side of the link.
func TestOnlyLoopbackHasIPv6(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.limited()
	addresses := func() (out []string, err error) {
		interfaces, err := net.Interfaces()
		for _, i := range interfaces {
			of, e := i.Addrs()
			err = errors.Join(err, e)
			for _, a := range of {
				if ip := a.(*net.IPNet).IP; ip.To4() == nil {
					out = append(out, i.Name+" "+ip.String())
				}
			}
		}
		return out, err
	}
	if err := b.in(func() error {
		if got, err := addresses(); err != nil || !slices.Equal(got, []string{"lo ::1"}) {
			t.Errorf("the sandbox's IPv6 addresses: %q %v", got, err)
		}
		l, err := net.Listen("tcp6", "[::1]:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.DialTimeout("tcp6", l.Addr().String(), 5*time.Second)
		if err != nil {
			return err
		}
		_ = c.Close()
		for _, address := range []string{"[2a0d::1]:80", "[fe80::1%eth0]:80", "[fd00::1]:80", "[ff02::1%lo]:80"} {
			if c, err := net.DialTimeout("udp6", address, 5*time.Second); err == nil {
				_ = c.Close()
				t.Errorf("there is a way to %s", address)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	gateway, err := netns.GetFromPath(filepath.Join(filepath.Dir(b.path), "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	if err := inNamespace(gateway, func() error {
		if got, err := addresses(); err != nil || len(got) != 0 {
			t.Errorf("the gateway's IPv6 addresses: %q %v", got, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
