package main

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
)

// What egress.ech may be.
const (
	echRefuse = "refuse"
	echAllow  = "allow"
)

// OpenPortConfig opens ports of a host beyond 80 and 443, for any protocol.
type OpenPortConfig struct {
	// Host is a host name, or "*." and a name.
	Host string `yaml:"host"`
	// Ports, without 25, 80 and 443.
	Ports []int `yaml:"ports"`
}

// EgressLimits bound what one session's network may use. Zero means the default.
type EgressLimits struct {
	// Connections over TCP that are open at a time.
	Connections int `yaml:"connections"`
	// ConnectionRate is new connections and UDP flows per second; twice as many at once.
	ConnectionRate int `yaml:"connection_rate"`
	// Names that are given an address, beside those an environment lists.
	Names int `yaml:"names"`
	// NamesUnrestricted is the same under unrestricted.
	NamesUnrestricted int `yaml:"names_unrestricted"`
	// DNSRate is DNS questions per second.
	DNSRate int `yaml:"dns_rate"`
	// HelloSize bounds a ClientHello.
	HelloSize Bytes `yaml:"hello_size"`
	// HelloTimeout is for sending it, or whatever comes first.
	HelloTimeout Duration `yaml:"hello_timeout"`
	// HeadSize bounds the head of a plain HTTP request.
	HeadSize Bytes `yaml:"head_size"`
	// HeadTimeout is for sending it.
	HeadTimeout Duration `yaml:"head_timeout"`
	// ResolveTimeout is for the host's resolver to answer.
	ResolveTimeout Duration `yaml:"resolve_timeout"`
	// ConnectTimeout is for connecting to all addresses of a name.
	ConnectTimeout Duration `yaml:"connect_timeout"`
	// IdleTimeout ends a connection on which nothing moves.
	IdleTimeout Duration `yaml:"idle_timeout"`
	// UDPFlows are pairs of a sandbox's port and a destination.
	UDPFlows int `yaml:"udp_flows"`
	// UDPIdle ends a flow on which nothing moves.
	UDPIdle Duration `yaml:"udp_idle"`
	// UDPUnanswered ends a flow that was not answered and on which nothing moves.
	UDPUnanswered Duration `yaml:"udp_unanswered"`
	// UDPRate is bytes per second of all flows that are not answered.
	UDPRate Bytes `yaml:"udp_rate"`
}

// limits are the limits as the gateway takes them.
func (l EgressLimits) limits() egress.Limits {
	return egress.Limits{
		Connections: l.Connections, ConnectionRate: float64(l.ConnectionRate), Names: l.Names, NamesUnrestricted: l.NamesUnrestricted,
		DNSRate: float64(l.DNSRate), HelloSize: int(l.HelloSize), Hello: time.Duration(l.HelloTimeout),
		HTTPHeadSize: int(l.HeadSize), HTTPHead: time.Duration(l.HeadTimeout), Resolve: time.Duration(l.ResolveTimeout),
		Connect: time.Duration(l.ConnectTimeout), Idle: time.Duration(l.IdleTimeout), UDPFlows: l.UDPFlows,
		UDPIdle: time.Duration(l.UDPIdle), UDPUnanswered: time.Duration(l.UDPUnanswered), UDPRate: int(l.UDPRate),
	}
}

// validate refuses what no gateway could work with: numbers beyond what the
// kernel and a table of names can hold, and sizes too small for honest clients.
func (l EgressLimits) validate() error {
	var errs []error
	v := reflect.ValueOf(l)
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		n := v.Field(i).Int()
		most := int64(1 << 20)
		switch {
		case strings.HasPrefix(name, "names"):
			most = 100_000 // the range of addresses holds 130,000
		case name == "udp_rate":
			most = 1 << 34
		case strings.HasSuffix(name, "_timeout") || name == "udp_idle" || name == "udp_unanswered":
			most = int64(24 * time.Hour)
		}
		if n < 0 || n > most {
			errs = append(errs, fmt.Errorf("egress.limits.%s: out of range", name))
		}
	}
	if l.HelloSize != 0 && l.HelloSize < 2<<10 || l.HeadSize != 0 && l.HeadSize < 4<<10 {
		errs = append(errs, errors.New("egress.limits: a hello_size below 2KiB or a head_size below 4KiB refuses ordinary clients"))
	}
	return errors.Join(errs...)
}

// validate returns everything that is wrong with the settings. What the gateway
// takes as it stands here, it checks itself.
func (e *EgressConfig) validate() error {
	config, err := e.gatewayConfig()
	errs := []error{err, config.Validate(), e.Limits.validate()}
	if e.ECH != "" && e.ECH != echRefuse && e.ECH != echAllow {
		errs = append(errs, fmt.Errorf("egress.ech: %q is not refuse or allow", e.ECH))
	}
	return errors.Join(errs...)
}

// gatewayConfig is what the configuration says about the egress gateway. The
// caller adds its directory and, where it serves, the rest. What is no range of
// addresses becomes the zero one, which the gateway refuses.
func (e *EgressConfig) gatewayConfig() (egress.Config, error) {
	resolver, err := e.resolver()
	out := egress.Config{BlockHosts: e.BlockHosts, BlockPorts: e.BlockPorts, AllowECH: e.ECH == echAllow, Resolver: resolver, Limits: e.Limits.limits()}
	for _, text := range e.DenyCIDRs {
		cidr, _ := netip.ParsePrefix(text)
		out.DenyCIDRs = append(out.DenyCIDRs, cidr)
	}
	for _, x := range e.Exempt {
		cidr, _ := netip.ParsePrefix(x.CIDR)
		out.Exempt = append(out.Exempt, egress.Exemption{Host: x.Host, CIDR: cidr, Ports: x.Ports})
	}
	for _, o := range e.OpenPorts {
		out.OpenPorts = append(out.OpenPorts, egress.OpenPort{Host: o.Host, Ports: o.Ports})
	}
	return out, err
}
