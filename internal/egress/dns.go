package egress

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxDNSMessage = 4096 // of a question over TCP; far above any honest one
	dnsIdle       = 10 * time.Second
	answerTTL     = 1
)

// serveDNS answers questions over UDP until the socket is closed.
func (s *slot) serveDNS() {
	buf := make([]byte, maxDNSMessage)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !s.mayAsk() {
			continue
		}
		if q, resolver, ok := s.asksAnew(buf[:n]); ok {
			s.running.Go(func() {
				if reply := s.lookUp(q, resolver, maxUDPAnswer); reply != nil {
					_, _ = s.udp.WriteToUDPAddrPort(reply, from)
				}
			})
			continue
		}
		if reply := s.answer(buf[:n]); reply != nil {
			_, _ = s.udp.WriteToUDPAddrPort(reply, from) // like any datagram, it may be lost
		}
	}
}

// serveDNSConn answers questions over one TCP connection.
func (s *slot) serveDNSConn(c net.Conn) {
	defer c.Close()
	buf := make([]byte, maxDNSMessage)
	for {
		_ = c.SetDeadline(time.Now().Add(dnsIdle))
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil || !s.mayAsk() {
			return
		}
		var reply []byte
		if q, resolver, ok := s.asksAnew(buf[:n]); ok {
			reply = s.lookUp(q, resolver, maxTCPAnswer)
		} else {
			reply = s.answer(buf[:n])
		}
		if reply == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// mayAsk counts a question against the session's rate.
func (s *slot) mayAsk() bool {
	if s.dnsRate.Allow() {
		return true
	}
	if st := s.state.Load(); st != nil {
		s.record(st, Record{Protocol: "dns", Reason: ReasonRateLimit})
	}
	return false
}

// answer makes the reply to one message, or nil if there is to be none. Nothing
// that is asked here leaves this function: no upstream, no log of raw names.
func (s *slot) answer(message []byte) (reply []byte) {
	defer func() {
		if p := recover(); p != nil { // one message, not the server
			s.gateway.log.Error("panic while answering a DNS question", "panic", p, "stack", string(debug.Stack()))
			reply = nil
		}
	}()
	st := s.state.Load()
	return dnsReply(message, func(name string) (dnsmessage.RCode, netip.Addr) {
		if st == nil {
			return dnsmessage.RCodeRefused, netip.Addr{}
		}
		return s.resolveName(st, name)
	})
}

// resolveName gives the address that a name has in this session.
func (s *slot) resolveName(st *state, name string) (dnsmessage.RCode, netip.Addr) {
	host, err := Canonical(name)
	if err != nil {
		s.record(st, Record{ClaimedHost: InvalidHost, Protocol: "dns", Reason: ReasonNameNotAllowed})
		return dnsmessage.RCodeNameError, netip.Addr{}
	}
	switch {
	case host.name == "localhost" || strings.HasSuffix(host.name, ".localhost"):
		return dnsmessage.RCodeSuccess, netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case s.gateway.guard.rules.Load().blocked.has(host):
		s.record(st, Record{Host: host.name, Protocol: "dns", Reason: ReasonBlocklisted})
		return dnsmessage.RCodeSuccess, refusalAddress()
	case !st.policy.names(host):
		s.record(st, Record{Host: host.name, Protocol: "dns", Reason: ReasonNameNotAllowed})
		return dnsmessage.RCodeSuccess, refusalAddress()
	}
	limit := s.gateway.config.Limits.Names
	if st.policy.Mode() == ModeUnrestricted {
		limit = s.gateway.config.Limits.NamesUnrestricted
	}
	addr, err := st.names.address(host, limit)
	if errors.Is(err, errNameLimit) {
		s.record(st, Record{Protocol: "dns", Reason: ReasonNameLimit})
	}
	if err != nil {
		return dnsmessage.RCodeServerFailure, netip.Addr{}
	}
	return dnsmessage.RCodeSuccess, addr
}

// dnsReply parses a message and writes the answer to it. resolve is asked for
// the address of a name, and is asked for nothing else.
func dnsReply(message []byte, resolve func(string) (dnsmessage.RCode, netip.Addr)) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.Response {
		return nil
	}
	reply := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	if h.OpCode != 0 {
		reply.RCode = dnsmessage.RCodeNotImplemented
		return dnsPack(reply, nil, netip.Addr{})
	}
	q, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) {
		reply.RCode = dnsmessage.RCodeFormatError
		return dnsPack(reply, nil, netip.Addr{})
	}
	if err != nil {
		return nil
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		reply.RCode = dnsmessage.RCodeFormatError
		return dnsPack(reply, nil, netip.Addr{})
	}
	if q.Class != dnsmessage.ClassINET {
		reply.RCode = dnsmessage.RCodeRefused
		return dnsPack(reply, &q, netip.Addr{})
	}
	var addr netip.Addr
	switch _, err := Canonical(q.Name.String()); {
	case q.Type == dnsmessage.TypeA:
		reply.RCode, addr = resolve(q.Name.String())
	case err != nil, !hasNoData(q.Type):
		reply.RCode = dnsmessage.RCodeNameError
	}
	return dnsPack(reply, &q, addr)
}

// hasNoData tells which questions are answered with "the name is there and has
// none of these". No answer of type HTTPS or SVCB means that no client learns
// of encrypted hellos or of HTTP/3.
func hasNoData(t dnsmessage.Type) bool {
	const caa = 257
	switch t {
	case dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS, dnsmessage.TypeSVCB, dnsmessage.TypeALL, dnsmessage.TypeTXT,
		dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeNS, dnsmessage.TypeSOA, dnsmessage.TypeCNAME, caa:
		return true
	}
	return false
}

func dnsPack(h dnsmessage.Header, q *dnsmessage.Question, addr netip.Addr) []byte {
	b := dnsmessage.NewBuilder(make([]byte, 0, 128), h)
	if q == nil {
		out, _ := b.Finish() // a header alone always packs
		return out
	}
	if b.StartQuestions() != nil || b.Question(*q) != nil {
		return nil
	}
	if addr.IsValid() {
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}
		b.EnableCompression()
		if b.StartAnswers() != nil || b.AResource(head, dnsmessage.AResource{A: addr.As4()}) != nil {
			return nil
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}
