package security

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// hello returns the first record that a client sends for these settings.
func hello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	go func() { _ = tls.Client(here, c).Handshake() }()
	_ = there.SetDeadline(time.Now().Add(30 * time.Second))
	head := make([]byte, 5)
	if _, err := io.ReadFull(there, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// helloAs says exactly these bytes as server name; empty: none. It is small: one
// key share of an old kind.
func helloAs(t testing.TB, name string) []byte {
	t.Helper()
	h := hello(t, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}})
	if name == "" {
		return h
	}
	return extended(h, 0, nameList(name))
}

// extended appends an extension to a hello of one record.
func extended(h []byte, kind uint16, data []byte) []byte {
	out := bytes.Clone(h)
	at := 5 + 4 + 2 + 32 // record, message, version, random
	at += 1 + int(out[at])
	at += 2 + int(binary.BigEndian.Uint16(out[at:]))
	at += 1 + int(out[at])
	ext := binary.BigEndian.AppendUint16(nil, kind)
	ext = append(binary.BigEndian.AppendUint16(ext, uint16(len(data))), data...)
	binary.BigEndian.PutUint16(out[at:], binary.BigEndian.Uint16(out[at:])+uint16(len(ext)))
	out = append(out, ext...)
	n := len(out) - 9
	out[6], out[7], out[8] = byte(n>>16), byte(n>>8), byte(n)
	binary.BigEndian.PutUint16(out[3:], uint16(len(out)-5))
	return out
}

// inRecords cuts a hello of one record into records of n bytes each.
func inRecords(h []byte, n int) []byte {
	var out []byte
	for body := h[5:]; len(body) > 0; {
		k := min(n, len(body))
		out = append(out, 0x16, 3, 1, byte(k>>8), byte(k))
		out = append(out, body[:k]...)
		body = body[k:]
	}
	return out
}

// nameList is a server_name extension's data with these names.
func nameList(names ...string) []byte {
	var list []byte
	for _, n := range names {
		list = append(list, 0, byte(len(n)>>8), byte(len(n)))
		list = append(list, n...)
	}
	return append([]byte{byte(len(list) >> 8), byte(len(list))}, list...)
}

// greaseECH is an encrypted hello, or a decoy: nobody without the key can tell.
func greaseECH() []byte {
	b := []byte{0, 0, 1, 0, 1, 7, 0, 32}
	b = append(b, bytes.Repeat([]byte{9}, 32)...)
	b = append(b, 0, 16)
	return append(b, bytes.Repeat([]byte{8}, 16)...)
}

// packet is an IPv4 packet to be made.
type packet struct {
	src, dst string // empty: the sandbox's address, the gateway's
	proto    byte
	payload  []byte
	options  []byte // a multiple of four bytes
	id, frag uint16 // identification; flags and fragment offset
	ether    []byte // the type and what is before it; nil: IPv4
	mac      []byte // destination; nil: the gateway's
}

var gatewayMAC = []byte{0x02, 0x61, 0x74, 0x6f, 0x6c, 0x01}
var sandboxMAC = []byte{0x02, 0x61, 0x74, 0x6f, 0x6c, 0x02}

func (p packet) frame() []byte {
	src, dst := "169.254.100.2", "169.254.100.1"
	if p.src != "" {
		src = p.src
	}
	if p.dst != "" {
		dst = p.dst
	}
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	ip := make([]byte, 20, 60)
	ip = append(ip, p.options...)
	ip[0] = 0x40 | byte(len(ip)/4)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(p.payload)))
	binary.BigEndian.PutUint16(ip[4:], p.id)
	binary.BigEndian.PutUint16(ip[6:], p.frag)
	ip[8], ip[9] = 64, p.proto
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	mac := p.mac
	if mac == nil {
		mac = gatewayMAC
	}
	out := append(bytes.Clone(mac), sandboxMAC...)
	if p.ether == nil {
		p.ether = []byte{8, 0}
	}
	out = append(out, p.ether...)
	return append(append(out, ip...), p.payload...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// udp is a datagram without checksum, which IPv4 allows.
func udp(from, to uint16, data []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, from)
	out = binary.BigEndian.AppendUint16(out, to)
	out = binary.BigEndian.AppendUint16(out, uint16(8+len(data)))
	return append(append(out, 0, 0), data...)
}

// tcp is a segment from the sandbox to dst.
func tcp(dst string, from, to uint16, flags byte, data []byte) []byte {
	out := make([]byte, 20)
	binary.BigEndian.PutUint16(out, from)
	binary.BigEndian.PutUint16(out[2:], to)
	binary.BigEndian.PutUint32(out[4:], 1000)
	out[12], out[13] = 5<<4, flags
	binary.BigEndian.PutUint16(out[14:], 64000)
	out = append(out, data...)
	s, d := netip.MustParseAddr("169.254.100.2").As4(), netip.MustParseAddr(dst).As4()
	pseudo := append(append(append([]byte{}, s[:]...), d[:]...), 0, 6, byte(len(out)>>8), byte(len(out)))
	binary.BigEndian.PutUint16(out[16:], checksum(append(pseudo, out...)))
	return out
}

// icmp is a message of this type.
func icmp(kind, code byte, rest []byte) []byte {
	out := append([]byte{kind, code, 0, 0}, rest...)
	binary.BigEndian.PutUint16(out[2:], checksum(out))
	return out
}
