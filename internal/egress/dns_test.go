package egress

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// one is a resolver of the stub that knows one address.
func one(string) (dnsmessage.RCode, netip.Addr) { return dnsmessage.RCodeSuccess, syntheticAddr(0) }

func answerTo(t *testing.T, change func(*dnsmessage.Message)) (dnsmessage.Message, bool) {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 99, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("OK.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	change(&m)
	data, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := dnsReply(data, one)
	if out == nil {
		return m, false
	}
	var r dnsmessage.Message
	if err := r.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if r.ID != 99 || !r.Response {
		t.Errorf("header %+v", r.Header)
	}
	return r, true
}

// E052, E061, E062: what is odd gets an error or nothing.
func TestE052OddMessages(t *testing.T) {
	t.Parallel()
	r, ok := answerTo(t, func(*dnsmessage.Message) {})
	if !ok || len(r.Answers) != 1 || r.Answers[0].Header.TTL != 1 || r.Answers[0].Header.Name.String() != "OK.example.com." || r.Questions[0].Name.String() != "OK.example.com." {
		t.Errorf("plain question: %+v", r)
	}
	for name, tt := range map[string]struct {
		change func(*dnsmessage.Message)
		rcode  dnsmessage.RCode
	}{
		"two questions": {func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }, dnsmessage.RCodeFormatError},
		"no question":   {func(m *dnsmessage.Message) { m.Questions = nil }, dnsmessage.RCodeFormatError},
		"opcode":        {func(m *dnsmessage.Message) { m.OpCode = 4 }, dnsmessage.RCodeNotImplemented},
		"class CH":      {func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }, dnsmessage.RCodeRefused},
		"type NULL":     {func(m *dnsmessage.Message) { m.Questions[0].Type = 10 }, dnsmessage.RCodeNameError},
		"AAAA of no name": {func(m *dnsmessage.Message) {
			m.Questions[0] = dnsmessage.Question{Name: dnsmessage.MustNewName("a b."), Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}
		}, dnsmessage.RCodeNameError},
		"EDNS": {func(m *dnsmessage.Message) {
			var h dnsmessage.ResourceHeader
			if err := h.SetEDNS0(65535, dnsmessage.RCodeSuccess, true); err != nil {
				t.Error(err)
			}
			m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
		}, dnsmessage.RCodeSuccess},
	} {
		if r, ok := answerTo(t, tt.change); !ok || r.RCode != tt.rcode {
			t.Errorf("%s: %v %v, want %v", name, r.RCode, ok, tt.rcode)
		}
	}
	if _, ok := answerTo(t, func(m *dnsmessage.Message) { m.Response = true }); ok {
		t.Error("a response was answered")
	}
	header := "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	for _, broken := range []string{"", "\x00", header, header + "\xc0\x0c\x00\x01\x00\x01", header + "\x40abc", header + strings.Repeat("\x01a", 200) + "\x00\x00\x01\x00\x01"} {
		if out := dnsReply([]byte(broken), one); out != nil {
			t.Errorf("%q was answered: %q", broken, out)
		}
	}
}
