package security

import (
	"bytes"
	"encoding/binary"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/test/security/prober/wire"
)

// dnsTo is a whole question to the stub, as a datagram.
func dnsTo(t testing.TB) []byte { return udp(40000, 53, question(t, "localhost", dnsmessage.TypeA)) }

// send puts frames on the wire and returns what came back besides ARP. Inside
// gVisor it asserts that there is no way to: ok is false then.
func (c *attempt) send(frames ...[]byte) (got [][]byte, ok bool) {
	c.Helper()
	r := c.do(wire.Request{Op: "frames", Frames: frames, WaitMS: 150})
	if c.s.place == inGVisor {
		if r.End != "forbidden" {
			c.Errorf("packet sockets: %s, want forbidden", told(r))
		}
		raw := c.do(wire.Request{Op: "connect", Network: "raw", Address: "169.254.100.1:0", Max: 255, Data: []byte("x"), WaitMS: 100})
		if raw.End != "forbidden" {
			c.Errorf("raw sockets: %s, want forbidden", told(raw))
		}
		if !slices.Contains(c.notes, "withheld by gVisor") {
			c.note("withheld by gVisor")
		}
		return nil, false
	}
	if r.Error != "" {
		c.Fatalf("sending frames: %s", told(r))
	}
	for _, f := range r.Frames {
		if len(f) > 34 && !bytes.Equal(f[12:14], []byte{8, 6}) {
			got = append(got, f)
		}
	}
	return got, true
}

// dropped sends frames and expects silence.
func (c *attempt) dropped(what string, frames ...[]byte) {
	c.Helper()
	if got, ok := c.send(frames...); ok && len(got) > 0 {
		c.Errorf("%s: answered with %x", what, got[0])
	}
}

// answered tells whether the stub's answer to dnsTo is among frames.
func answered(frames [][]byte) bool {
	return slices.ContainsFunc(frames, func(f []byte) bool {
		return f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == 40000 && bytes.Contains(f, []byte{127, 0, 0, 1})
	})
}

// rawPackets are the cases that craft packets.
func rawPackets(t *testing.T, s *stand) {
	raw := s.raw.String()
	s.try(t, "E024", func(c *attempt) {
		echo := icmp(8, 0, []byte{0, 1, 0, 1, 'x'})
		redirect := icmp(5, 1, append([]byte{169, 254, 100, 2}, packet{src: "169.254.100.1", dst: "169.254.100.2", proto: 17, payload: dnsTo(c)}.frame()[14:42]...))
		c.dropped("echo", packet{proto: 1, payload: echo}.frame(), packet{proto: 1, payload: echo, dst: raw}.frame())
		c.dropped("redirect", packet{proto: 1, payload: redirect}.frame())
		if r := c.do(wire.Request{Op: "connect", Network: "ping", Address: at(raw, 0), Data: icmp(8, 0, []byte{0, 1, 0, 1}), WaitMS: 200}); len(r.Data) > 0 {
			c.Errorf("ping: %s", told(r))
		}
		c.neighbours()
	})
	s.try(t, "E025", func(c *attempt) {
		for _, proto := range []byte{132, 33, 47, 50, 255} {
			c.dropped("a protocol", packet{proto: proto, payload: make([]byte, 32)}.frame(), packet{proto: proto, dst: raw, payload: make([]byte, 32)}.frame())
		}
	})
	s.try(t, "E026", func(c *attempt) {
		ask := packet{proto: 17, payload: dnsTo(c)}
		got, ok := c.send(ask.frame())
		for tries := 0; ok && !answered(got); tries++ {
			if tries == 20 {
				c.Fatal("a good frame gets no answer: the case shows nothing")
			}
			got, _ = c.send(ask.frame())
		}
		for name, ether := range map[string][]byte{"IPv6": {0x86, 0xdd}, "VLAN": {0x81, 0, 0, 5, 8, 0}, "unknown": {0x88, 0xb5}} {
			p := ask
			p.ether = ether
			c.dropped(name, p.frame())
		}
		foreign := ask
		foreign.mac = []byte{2, 1, 2, 3, 4, 5}
		c.dropped("foreign destination", foreign.frame())
		gratuitous := append(bytes.Repeat([]byte{0xff}, 6), 2, 9, 9, 9, 9, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 9, 9, 9, 9, 9, 169, 254, 100, 2, 255, 255, 255, 255, 255, 255, 169, 254, 100, 2)
		c.dropped("gratuitous ARP", gratuitous)
		c.neighbours()
	})
	s.try(t, "E027", func(c *attempt) {
		for _, src := range []string{"169.254.100.3", "169.254.100.1", "203.0.113.5", "10.0.0.5", "127.0.0.1", "0.0.0.0"} {
			c.dropped("from "+src, packet{src: src, proto: 17, payload: dnsTo(c)}.frame())
		}
	})
	s.try(t, "E029", func(c *attempt) { fragments(c, raw) })
	s.try(t, "E030", func(c *attempt) {
		for _, kind := range []byte{131, 137} { // loose, strict
			options := append([]byte{kind, 7, 4}, 8, 8, 8, 8, 0)
			c.dropped("source route", packet{proto: 17, options: options, payload: dnsTo(c)}.frame())
			c.dropped("source route of a SYN", packet{proto: 6, options: options, dst: raw, payload: tcp(raw, 40001, 80, 2, nil)}.frame())
		}
	})
	s.try(t, "E031", func(c *attempt) {
		for _, dst := range []string{"127.0.0.1", "127.1.1.1"} {
			c.dropped("datagram", packet{dst: dst, proto: 17, payload: dnsTo(c)}.frame())
			c.dropped("SYN", packet{dst: dst, proto: 6, payload: tcp(dst, 40002, 15001, 2, nil)}.frame())
		}
	})
	s.try(t, "E032", func(c *attempt) { earlyData(c, raw) })
}

// neighbours asserts that the gateway still knows its one neighbour.
func (c *attempt) neighbours() {
	c.Helper()
	ns, err := netns.GetFromPath(filepath.Join(filepath.Dir(c.s.netns), "gateway"))
	if err != nil {
		c.Fatal(err)
	}
	defer ns.Close()
	err = onThread(ns, func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_V4)
		for _, n := range all {
			if n.IP.Equal(net.IPv4(169, 254, 100, 2)) && !bytes.Equal(n.HardwareAddr, sandboxMAC) {
				c.Errorf("the gateway believes that its neighbour is %s", n.HardwareAddr)
			}
		}
		return err
	})
	if err != nil {
		c.Fatal(err)
	}
}

// fragments sends a question and a SYN in pieces.
func fragments(c *attempt, raw string) {
	const more = 0x2000
	datagram := dnsTo(c)
	syn := tcp(raw, 40003, 80, 2, nil)
	whole := [][]byte{
		packet{proto: 17, id: 1, frag: more, payload: datagram[:8]}.frame(),
		packet{proto: 17, id: 1, frag: 1, payload: datagram[8:]}.frame(),
	}
	backwards := [][]byte{
		packet{proto: 17, id: 2, frag: 1, payload: datagram[8:]}.frame(),
		packet{proto: 17, id: 2, frag: more, payload: datagram[:8]}.frame(),
	}
	for name, frames := range map[string][][]byte{"in order": whole, "backwards": backwards} {
		if got, ok := c.send(frames...); ok {
			for _, f := range got {
				if !answered([][]byte{f}) {
					c.Errorf("a question in fragments, %s: answered with %x", name, f)
				}
			}
		}
	}
	// A first fragment that names the stub's port, and one that overlaps it and names another.
	other := bytes.Clone(datagram)
	binary.BigEndian.PutUint16(other[2:], 123)
	c.dropped("overlapping", packet{proto: 17, id: 3, frag: more, payload: datagram[:16]}.frame(), packet{proto: 17, id: 3, frag: 0, payload: other}.frame()[:14+20+16])
	got, ok := c.send(
		packet{dst: raw, proto: 6, id: 4, frag: more, payload: syn[:8]}.frame(),
		packet{dst: raw, proto: 6, id: 4, frag: 1, payload: syn[8:]}.frame(),
	)
	if ok {
		for _, f := range got { // reassembled and captured: it is the gateway that answers
			if f[23] != 6 || !bytes.Equal(f[26:30], c.s.raw.AsSlice()) {
				c.Errorf("a SYN in fragments: answered with %x", f)
			}
		}
	}
}

// earlyData sends data before a connection is there, or without one.
func earlyData(c *attempt, raw string) {
	s := c.s
	request := []byte(httpGet("ok.example.com"))
	for _, flags := range []byte{2, 18, 16, 24} { // SYN, SYN and ACK (as in a simultaneous open), ACK, ACK with data
		got, _ := c.send(packet{dst: raw, proto: 6, payload: tcp(raw, 40010+uint16(flags), 80, flags, request)}.frame())
		for _, f := range got {
			if f[23] == 6 && strings.Contains(string(f), "HTTP/1.1 2") {
				c.Errorf("flags %d: answered with %q", flags, f)
			}
		}
	}
	if s.mode == "L" {
		r := c.do(wire.Request{Op: "connect", Network: "fastopen", Address: at(raw, 80), Data: request, WaitMS: 3000})
		if len(r.Data) > 0 || r.End == "eof" {
			c.want403(r, raw+":80")
			c.decided("http no_mapping raw:80 claims ok.example.com")
		}
	}
}

// E028: a sandbox with every capability changes its own network as it likes.
func TestOwnNetwork(t *testing.T) {
	t.Parallel()
	for mode, spec := range map[string]egress.Spec{"L": limited("ok.example.com"), "U": {Mode: egress.ModeUnrestricted}, "B": {Mode: egress.ModeBuild}} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			everywhere(t, mode, spec, quick, func(t *testing.T, s *stand) {
				s.try(t, "E028", func(c *attempt) { ownNetwork(c) })
			})
		})
	}
}

func ownNetwork(c *attempt) {
	s := c.s
	r := c.do(wire.Request{Op: "admin"})
	for step, outcome := range r.Header {
		done := outcome == "done"
		switch {
		case s.place == inPlain && (step == "namespace" || step == "forwarding"):
			// A new namespace has no link at all; /proc/sys may be read-only.
			if step == "namespace" && done {
				c.Error("a namespace without links reached the gateway")
			}
		case s.place == inPlain && !done && step != "ipv6":
			c.Errorf("%s: %s: the case shows nothing", step, outcome)
		case s.place == inGVisor && (step == "address" || step == "route" || step == "link" || step == "namespace") && done:
			c.Errorf("%s: done; gVisor withholds it", step)
		}
	}
	c.unowned("tcp", "http", "tls")
	for _, address := range []string{"169.254.169.254:80", "10.99.0.2:80", "100.64.0.1:22", "127.0.0.1:8400", "203.0.113.78:25", "224.0.0.1:80"} {
		got := c.do(wire.Request{Op: "talk", Address: address, Data: []byte(httpGet("ok.example.com")), WaitMS: 2000})
		if len(got.Data) > 0 && !strings.HasPrefix(string(got.Data), "HTTP/1.1 403 ") {
			c.Errorf("%s: %s", address, told(got))
		}
	}
	for _, address := range []string{"[2606:4700:4700::1111]:443", "[fd64::1]:22", "[fd64::2]:80"} {
		if got := c.do(wire.Request{Op: "talk", Network: "tcp6", Address: address, Data: []byte("x"), WaitMS: 1500}); len(got.Data) > 0 || got.End == "eof" {
			c.Errorf("%s: %s", address, told(got))
		}
	}
}
