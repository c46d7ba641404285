package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/atoll-run/atoll/internal/egress"
)

// fixedHosts answers the configured names itself and asks the host's resolver
// for all others, and for all that is not an address.
type fixedHosts struct {
	*net.Resolver
	fixed map[string][]netip.Addr // canonical name → addresses
}

// LookupNetIP implements egress.Resolver.
func (f fixedHosts) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if addrs := f.fixed[strings.TrimSuffix(host, ".")]; len(addrs) > 0 {
		return addrs, nil
	}
	return f.Resolver.LookupNetIP(ctx, network, host)
}

// HostResolver is what egress.RecordResolver asks for.
func (f fixedHosts) HostResolver() *net.Resolver { return f.Resolver }

// resolver is how the gateway turns names into addresses; nil when nothing but
// the host's own resolver is wanted.
func (e *EgressConfig) resolver() (egress.Resolver, error) {
	if len(e.Hosts) == 0 {
		return nil, nil
	}
	out := fixedHosts{fixed: map[string][]netip.Addr{}, Resolver: net.DefaultResolver}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(e.Hosts)) {
		host, err := egress.Canonical(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("egress.hosts: %q: %w", name, err))
			continue
		}
		for _, text := range e.Hosts[name] {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("egress.hosts: %s: %q is not an address", name, text))
			}
			out.fixed[host.String()] = append(out.fixed[host.String()], addr)
		}
		if len(e.Hosts[name]) == 0 {
			errs = append(errs, fmt.Errorf("egress.hosts: %s: no address", name))
		}
	}
	return out, errors.Join(errs...)
}
