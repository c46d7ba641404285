package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// RecordResolver is a [Resolver] that answers more than addresses. Under mode
// unrestricted the stub asks it for the MX, TXT, SRV and NS records of a name;
// without one it says that there are none. *net.Resolver is one. One that wraps a
// *net.Resolver has a method HostResolver that returns it, so that aliases in its
// answers are seen.
type RecordResolver interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
}

const (
	maxLookups   = 16  // of one session at a time
	maxUDPAnswer = 512 // plain DNS; a client that wants more asks over TCP
	maxTCPAnswer = 65535
	maxRecords   = 100
	maxAliases   = 16 // of one name
)

// recordQuestion is a question that the stub asks anew: its answer holds names
// and texts, no addresses.
type recordQuestion struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	host     Host
}

// parseRecordQuestion finds out whether a message is such a question.
func parseRecordQuestion(message []byte) (q recordQuestion, ok bool) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(message); err != nil || q.header.Response || q.header.OpCode != 0 {
		return q, false
	}
	if q.question, err = p.Question(); err != nil || q.question.Class != dnsmessage.ClassINET {
		return q, false
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, false
	}
	switch q.question.Type {
	case dnsmessage.TypeMX, dnsmessage.TypeTXT, dnsmessage.TypeSRV, dnsmessage.TypeNS:
	default:
		return q, false
	}
	q.host, err = Canonical(q.question.Name.String())
	return q, err == nil
}

// asksAnew tells whether the message is a question that this session may have
// asked anew, and of whom.
func (s *slot) asksAnew(message []byte) (recordQuestion, RecordResolver, bool) {
	st := s.state.Load()
	if st == nil || st.policy.Mode() != ModeUnrestricted {
		return recordQuestion{}, nil, false
	}
	rules := s.gateway.guard.rules.Load()
	resolver, able := rules.resolver.(RecordResolver)
	q, ok := parseRecordQuestion(message)
	if !ok || !able || strings.HasSuffix("."+q.host.name, ".localhost") {
		return q, nil, false
	}
	if rules.blocked.has(q.host) {
		s.record(st, Record{Host: q.host.name, Protocol: "dns", Reason: ReasonBlocklisted})
		return q, nil, false
	}
	searched, err := searchDomains(s.gateway.guard.resolvConf)
	if err == nil {
		err = checkRecordName(q.host, searched)
	}
	if err != nil {
		s.refuseRecords(q, err)
		return q, nil, false
	}
	return q, resolver, true
}

// refuseRecords records that a question is not asked, or its answer not given.
func (s *slot) refuseRecords(q recordQuestion, err error) {
	s.gateway.log.Debug("egress: DNS records are not given", "host", q.host.name, "error", err.Error())
	if st := s.state.Load(); st != nil {
		s.record(st, Record{Host: q.host.name, Protocol: "dns", Reason: dialReason(err)})
	}
}

// publicRecords asks for the records of a name in a public zone. The name may be
// an alias, of a name in a public zone.
func (s *slot) publicRecords(ctx context.Context, resolver RecordResolver, q recordQuestion) ([]dnsmessage.ResourceBody, error) {
	g := s.gateway.guard
	if err := g.checkZone(ctx, &s.zones, resolver, q.host); err != nil {
		return nil, err
	}
	seen := &seenNames{}
	records, err := lookUpRecords(ctx, seen.watch(resolver), q.question.Type, q.host)
	aliases, ok := seen.beside(q.host)
	if !ok || len(aliases) > maxAliases {
		return nil, &DialError{ReasonNameNotAllowed, fmt.Errorf("an answer has a name that is none, or %d of them", len(aliases))}
	}
	searched, unread := searchDomains(g.resolvConf)
	if unread != nil && len(aliases) > 0 {
		return nil, &DialError{ReasonNameNotAllowed, unread}
	}
	for _, alias := range aliases {
		if g.rules.Load().blocked.has(alias) {
			return nil, &DialError{ReasonBlocklisted, fmt.Errorf("%s stands for %s", q.host, alias)}
		}
		if err := checkRecordName(alias, searched); err != nil {
			return nil, err
		}
		if err := g.checkZone(ctx, &s.zones, resolver, alias); err != nil {
			return nil, err
		}
	}
	return records, err
}

// lookUp asks and encodes the answer in at most limit bytes. One lookup too many
// fails, for the client to try again.
func (s *slot) lookUp(q recordQuestion, resolver RecordResolver, limit int) (reply []byte) {
	defer func() {
		if p := recover(); p != nil { // one question, not the server
			s.gateway.log.Error("panic while asking for DNS records", "panic", p, "stack", string(debug.Stack()))
			reply = nil
		}
	}()
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	default:
		return q.reply(dnsmessage.RCodeServerFailure, nil, limit)
	}
	descriptors, id := s.gateway.config.Descriptors, s.state.Load().id // asksAnew has seen a state
	if !descriptors.Take(id, lookupDescriptors) {
		return q.reply(dnsmessage.RCodeServerFailure, nil, limit)
	}
	defer descriptors.Give(id, lookupDescriptors)
	ctx, cancel := context.WithTimeout(s.ctx, s.gateway.config.Limits.Resolve)
	defer cancel()
	records, err := s.publicRecords(ctx, resolver, q)
	var refused *DialError
	switch {
	case !errors.As(err, &refused):
	case refused.Reason == ReasonResolveFailed: // of the zone's servers
		return q.reply(dnsmessage.RCodeServerFailure, nil, limit)
	default:
		s.refuseRecords(q, refused)
		return q.reply(dnsmessage.RCodeSuccess, nil, limit)
	}
	var dns *net.DNSError
	if err != nil && len(records) == 0 && !(errors.As(err, &dns) && dns.IsNotFound) {
		return q.reply(dnsmessage.RCodeServerFailure, nil, limit)
	}
	return q.reply(dnsmessage.RCodeSuccess, records, limit)
}

// lookUpRecords asks for the records of one type. What is no canonical name in
// them is left out.
func lookUpRecords(ctx context.Context, r RecordResolver, kind dnsmessage.Type, host Host) (out []dnsmessage.ResourceBody, err error) {
	name := host.name + "."
	switch kind {
	case dnsmessage.TypeMX:
		found, e := r.LookupMX(ctx, name)
		for _, mx := range found {
			if target, ok := recordName(mx.Host); ok {
				out = append(out, &dnsmessage.MXResource{Pref: mx.Pref, MX: target})
			}
		}
		err = e
	case dnsmessage.TypeTXT:
		found, e := r.LookupTXT(ctx, name)
		for _, text := range found {
			out = append(out, &dnsmessage.TXTResource{TXT: chunks(text)})
		}
		err = e
	case dnsmessage.TypeSRV:
		_, found, e := r.LookupSRV(ctx, "", "", name)
		for _, srv := range found {
			if target, ok := recordName(srv.Target); ok {
				out = append(out, &dnsmessage.SRVResource{Priority: srv.Priority, Weight: srv.Weight, Port: srv.Port, Target: target})
			}
		}
		err = e
	case dnsmessage.TypeNS:
		found, e := r.LookupNS(ctx, name)
		for _, ns := range found {
			if target, ok := recordName(ns.Host); ok {
				out = append(out, &dnsmessage.NSResource{NS: target})
			}
		}
		err = e
	}
	return out[:min(len(out), maxRecords)], err
}

// recordName is a canonical name as DNS writes it.
func recordName(raw string) (dnsmessage.Name, bool) {
	host, err := Canonical(raw)
	if err != nil {
		return dnsmessage.Name{}, false
	}
	name, err := dnsmessage.NewName(host.name + ".")
	return name, err == nil
}

// chunks cuts a text into the strings that a TXT record holds.
func chunks(text string) []string {
	const longest = 255
	out := []string{}
	for len(text) > longest {
		out, text = append(out, text[:longest]), text[longest:]
	}
	return append(out, text)
}

// reply encodes the answer: the question, the records, and nothing besides. One
// that is too long is cut to nothing and says so, and the client asks over TCP.
func (q recordQuestion) reply(code dnsmessage.RCode, records []dnsmessage.ResourceBody, limit int) []byte {
	header := dnsmessage.Header{ID: q.header.ID, Response: true, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code}
	m := dnsmessage.Message{Header: header, Questions: []dnsmessage.Question{q.question}}
	for _, body := range records {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}, Body: body,
		})
	}
	out, err := m.Pack()
	if err != nil || len(out) > limit {
		header.Truncated = true
		return dnsPack(header, &q.question, netip.Addr{})
	}
	return out
}
