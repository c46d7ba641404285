package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// A question for texts and names (TXT, SRV, MX, NS) is asked of the host's
// resolver, which may know zones that the public does not: the operator's own.
// Their addresses are refused by the guard; what stands in their other records
// is refused here.

// internalSuffixes are names that are of no public zone, or of one that holds
// nothing but how a network is made up. Names below a top-level domain that is
// not in the list of public suffixes are refused without standing here.
func internalSuffixes() []string {
	return []string{
		"alt", "arpa", "corp", "domain", "example", "home", "host", "internal", "intranet", "invalid", "lan", "local", "localdomain", "localhost",
		"mail", "onion", "private", "test", "workgroup",
	}
}

const (
	resolvConf     = "/etc/resolv.conf"
	dnsServerPort  = 53
	maxZoneLabels  = 10 // of a name, below its public suffix; each may be a question
	maxZoneServers = 16
	zoneVerdictAge = time.Minute
	maxZones       = 128 // verdicts that a session keeps
)

// checkRecordName refuses names whose records are none of a sandbox's business
// by what they are called, without asking anybody. searched are the host's
// search domains.
func checkRecordName(host Host, searched []Host) error {
	refuse := func(why string) error {
		return &DialError{ReasonNameNotAllowed, fmt.Errorf("%s %s", host, why)}
	}
	last := host.name[strings.LastIndexByte(host.name, '.')+1:]
	if last == host.name {
		return refuse("is a name of one label")
	}
	if suffix, icann := publicsuffix.PublicSuffix(host.name); slices.Contains(internalSuffixes(), last) || suffix == last && !icann {
		return refuse("is below no public top-level domain")
	}
	for _, s := range searched {
		if host == s || strings.HasSuffix(host.name, "."+s.name) {
			return refuse("is in a search domain of this host")
		}
	}
	return nil
}

// searchDomains are the domains that the host's own programs try names in, as
// the file says, and that of the host's own name. No file is no domain.
func searchDomains(file string) ([]Host, error) {
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the search domains: %w", err)
	}
	out := parseSearchDomains(data)
	if name, err := os.Hostname(); err == nil {
		if _, domain, ok := strings.Cut(name, "."); ok {
			if h, err := Canonical(domain); err == nil {
				out = append(out, h)
			}
		}
	}
	return out, nil
}

// parseSearchDomains reads resolv.conf(5). All lines count, where a resolver
// takes the last one.
func parseSearchDomains(data []byte) []Host {
	var out []Host
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "search" && words[0] != "domain" {
			continue
		}
		for _, w := range words[1:] {
			if h, err := Canonical(w); err == nil {
				out = append(out, h)
			}
		}
	}
	return out
}

// zoneVerdicts are what was found out about zones lately, for one session. The
// zero value knows none.
type zoneVerdicts struct {
	mu    sync.Mutex // guards what follows
	rules *rules     // that the verdicts were found under
	known map[Host]zoneVerdict
}

type zoneVerdict struct {
	err error // nil: the zone's servers are public
	at  time.Time
}

func (z *zoneVerdicts) get(r *rules, zone Host) (error, bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	v, ok := z.known[zone]
	return v.err, ok && z.rules == r && time.Since(v.at) < zoneVerdictAge
}

func (z *zoneVerdicts) put(r *rules, zone Host, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.known == nil || z.rules != r || len(z.known) >= maxZones {
		z.rules, z.known = r, map[Host]zoneVerdict{}
	}
	z.known[zone] = zoneVerdict{err, time.Now()}
}

// checkZone refuses a name whose zone has a name server that is not at a public
// address, or has none: such a zone is the operator's, and only the host's
// resolver knows it. A [DialError] of the reason resolve_failed means that it
// could not be found out.
func (g *guard) checkZone(ctx context.Context, z *zoneVerdicts, r RecordResolver, host Host) error {
	rules := g.rules.Load()
	suffix, _ := publicsuffix.PublicSuffix(host.name)
	zone := host
	for range maxZoneLabels {
		if err, known := z.get(rules, zone); known {
			return err
		}
		servers, err := nameServers(ctx, r, zone)
		if err != nil {
			return &DialError{ReasonResolveFailed, err}
		}
		if len(servers) > 0 {
			err := g.checkServers(ctx, servers)
			if dialReason(err) != ReasonResolveFailed {
				z.put(rules, zone, err)
			}
			return err
		}
		// Above this, a zone is a registry's: it has no records of others.
		_, parent, ok := strings.Cut(zone.name, ".")
		if !ok || parent == suffix || zone.name == suffix {
			break
		}
		zone = Host{parent}
	}
	return &DialError{ReasonAddressNotPublic, fmt.Errorf("no name server of a zone of %s was found", host)}
}

// checkServers refuses a zone if one of its name servers is not public. Those
// without an address do not count, as long as there is another.
func (g *guard) checkServers(ctx context.Context, servers []Host) error {
	var last error
	found := false
	for _, s := range servers[:min(len(servers), maxZoneServers)] {
		if err := checkRecordName(s, nil); err != nil {
			return err
		}
		_, err := g.lookup(ctx, nil, s, dnsServerPort)
		switch {
		case err == nil:
			found = true
		case dialReason(err) != ReasonResolveFailed:
			return err
		default:
			last = err
		}
	}
	if !found {
		return last
	}
	return nil
}

// nameServers are those of the zone that begins at a name; none if the name is
// within a zone, or another name for something.
func nameServers(ctx context.Context, r RecordResolver, zone Host) ([]Host, error) {
	seen := &seenNames{}
	found, err := seen.watch(r).LookupNS(ctx, zone.name+".")
	var dns *net.DNSError
	if err != nil && len(found) == 0 && !(errors.As(err, &dns) && dns.IsNotFound) {
		return nil, err
	}
	if aliases, ok := seen.beside(zone); !ok || len(aliases) > 0 {
		return nil, nil
	}
	var out []Host
	for _, ns := range found {
		if h, err := Canonical(ns.Host); err == nil {
			out = append(out, h)
		}
	}
	return out, nil
}
