package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/atoll-run/atoll/internal/egress"
)

// checkSafetyList shows what no sandbox reaches, whatever its environment says.
func checkSafetyList(cfg Config) (string, error) {
	own, err := ownNetworks()
	if err != nil {
		return "", err
	}
	list := func(prefixes []netip.Prefix) string {
		words := make([]string, len(prefixes))
		for i, p := range prefixes {
			words[i] = p.String()
		}
		return strings.Join(words, " ")
	}
	parts := []string{list(egress.SafetyList()), "this host: " + list(own), "TCP port 25"}
	if c := cfg.Egress; len(c.DenyCIDRs)+len(c.BlockHosts)+len(c.BlockPorts) > 0 {
		parts = append(parts, strings.TrimSpace(strings.Join(append(slices.Clone(c.DenyCIDRs), c.BlockHosts...), " ")+" ports "+fmt.Sprint(c.BlockPorts)))
	}
	return strings.Join(parts, "; "), nil
}

// ownNetworks are the host's addresses and the subnets that it is on, which the
// guard refuses too and follows as they change.
func ownNetworks() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("reading the host's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			out = append(out, p)
		}
	}
	return out, nil
}

// checkEgressSettings warns of settings that open what would be closed.
func checkEgressSettings(_ context.Context, cfg Config) (string, error) {
	own, err := ownNetworks()
	if err != nil {
		return "", err
	}
	config, err := cfg.Egress.gatewayConfig()
	if err != nil {
		return "", err
	}
	var risks, words []string
	for _, e := range config.Exempt {
		text := fmt.Sprintf("%s at %s", e.Host, e.CIDR)
		a := e.CIDR.Addr()
		switch {
		case a.IsLoopback() || slices.ContainsFunc(own, func(p netip.Prefix) bool { return e.CIDR.Contains(p.Addr()) }):
			risks = append(risks, text+": services of this machine")
		case a.IsLinkLocalUnicast():
			risks = append(risks, text+": link-local addresses, where clouds serve metadata")
		default:
			words = append(words, text)
		}
	}
	if cfg.Egress.ECH == echAllow {
		risks = append(risks, "encrypted ClientHellos are let through: the host inside them is not checked")
	}
	for _, o := range cfg.Egress.OpenPorts {
		words = append(words, fmt.Sprintf("%s on ports %v, unchecked", o.Host, o.Ports))
	}
	if len(risks) > 0 {
		return "", errors.New("sandboxes may reach " + strings.Join(risks, "; "))
	}
	if len(words) == 0 {
		return "no exemption, no port opened", nil
	}
	return strings.Join(words, "; "), nil
}
