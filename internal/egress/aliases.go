package egress

import (
	"context"
	"encoding/binary"
	"net"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// seenNames are the names that the resolver's answers to one question were
// about. The owner of a public zone can make a name in it an alias of a name in
// any zone, and the resolver follows; a caller of the standard library's
// resolver sees the end of the chain only.
type seenNames struct {
	mu     sync.Mutex      // guards what follows
	names  map[string]bool // as they stood in the answers
	broken bool            // an answer could not be read
}

// watch returns a resolver that asks as r does and notes the names in what it
// hears. A resolver that is neither a *net.Resolver nor has one is returned as
// it is: it follows no aliases.
func (s *seenNames) watch(r RecordResolver) RecordResolver {
	var base *net.Resolver
	switch r := r.(type) {
	case *net.Resolver:
		base = r
	case interface{ HostResolver() *net.Resolver }:
		base = r.HostResolver()
	default:
		return r
	}
	dial := base.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &net.Resolver{PreferGo: true, StrictErrors: base.StrictErrors, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if udp, ok := c.(*net.UDPConn); ok {
			return &watchedPackets{udp, s}, nil
		}
		return &watchedStream{Conn: c, seen: s}, nil
	}}
}

// watchedPackets is a connection to a resolver over UDP. It has to stay a
// net.PacketConn, by which the resolver knows that messages have no length
// before them.
type watchedPackets struct {
	*net.UDPConn
	seen *seenNames
}

func (w *watchedPackets) Read(b []byte) (int, error) {
	n, err := w.UDPConn.Read(b)
	if err == nil {
		w.seen.read(b[:n])
	}
	return n, err
}

// watchedStream is a connection to a resolver over TCP.
type watchedStream struct {
	net.Conn
	seen *seenNames
	got  []byte // of a message that is not whole yet, its length first
}

func (w *watchedStream) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.got = append(w.got, b[:n]...)
	for len(w.got) >= 2 {
		size := int(binary.BigEndian.Uint16(w.got))
		if len(w.got) < 2+size {
			break
		}
		w.seen.read(w.got[2 : 2+size])
		w.got = w.got[2+size:]
	}
	return n, err
}

// read notes the names in the answers of one message.
func (s *seenNames) read(message []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = map[string]bool{}
	}
	var p dnsmessage.Parser
	if _, err := p.Start(message); err != nil {
		s.broken = true
		return
	}
	if err := p.SkipAllQuestions(); err != nil {
		s.broken = true
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return
		}
		if err != nil {
			s.broken = true
			return
		}
		s.names[h.Name.String()] = true
		if h.Type != dnsmessage.TypeCNAME {
			err = p.SkipAnswer()
		} else if alias, bad := p.CNAMEResource(); bad == nil {
			s.names[alias.CNAME.String()] = true
		} else {
			err = bad
		}
		if err != nil {
			s.broken = true
			return
		}
	}
}

// beside are the names that were seen and are not the one that was asked for.
// It is not ok if an answer, or a name in one, could not be read.
func (s *seenNames) beside(asked Host) (out []Host, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.names {
		h, err := Canonical(name)
		if err != nil {
			return nil, false
		}
		if h != asked {
			out = append(out, h)
		}
	}
	return out, !s.broken
}
