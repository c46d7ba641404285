package egress

import (
	"log/slog"
	"net/netip"
	"time"
)

// Config is what a [Gateway] needs to know.
type Config struct {
	// Dir is where networks are kept: the mounts that hold namespaces open, and
	// for each session its policy and its table of names. It is made if it is
	// not there. Each server needs its own.
	Dir string
	// Logger gets a line for each refusal; nil means none.
	Logger *slog.Logger
	// DenyCIDRs are ranges that no sandbox reaches, besides those built in.
	DenyCIDRs []netip.Prefix
	// Exempt lets single hosts be at addresses that are not public. One that
	// names port 25 opens that under mode unrestricted.
	Exempt []Exemption
	// BlockHosts are names, or "*." and a name, that no policy opens.
	BlockHosts []string
	// BlockPorts are TCP and UDP ports that no policy opens.
	BlockPorts []int
	// OpenPorts are ports beside 80 and 443 that are open, unchecked, on hosts
	// that a policy of mode limited allows.
	OpenPorts []OpenPort
	// AllowECH lets through TLS whose server name is encrypted. The name inside
	// cannot be checked then.
	AllowECH bool
	// Resolver turns names into addresses on the host; nil means the host's own.
	Resolver Resolver
	// PoolSize is how many networks are made ahead. Zero: none, each is made
	// when it is asked for.
	PoolSize int
	// Descriptors are asked before anything is opened for a network, with its id
	// for the holder; what finds none is refused as beyond the session's limits.
	// Nil means that there are enough.
	Descriptors Descriptors
	// Limits of each session.
	Limits Limits
	// Now is the clock that records are stamped by; nil means time.Now. Its times
	// have a monotonic part, as those of time.Now have: durations are taken from
	// that, so that steps of the wall clock do not show in them.
	Now func() time.Time
	// OnDecision, if not nil, is called for each decision as it is made, before
	// byte counts are known. It must not block.
	OnDecision func(Record)
}

// Limits bound what one session may use. Zero means the default.
type Limits struct {
	Connections       int           // open TCP connections; default 512
	ConnectionRate    float64       // new connections per second; default 200, burst twice that
	Names             int           // names with an address beside the listed ones; default 4096
	NamesUnrestricted int           // the same in mode unrestricted; default 32768
	DNSRate           float64       // questions per second; default 500, burst the same
	HelloSize         int           // of a ClientHello; default 18 KiB
	Hello             time.Duration // to send the first bytes and the ClientHello; default 5 s
	HTTPHeadSize      int           // of a request; default 64 KiB
	HTTPHead          time.Duration // to send the head of a request; default 10 s
	Resolve           time.Duration // of a name on the host; default 5 s
	Connect           time.Duration // to all addresses of a name; default 10 s
	Idle              time.Duration // of a connection on which nothing moves; default 15 min
	UDPFlows          int           // pairs of a port and a destination; default 256
	UDPIdle           time.Duration // of a flow that was answered; default 60 s
	UDPUnanswered     time.Duration // of a flow that was not yet; default 10 s
	UDPRate           int           // bytes per second of all flows that are not answered; default 1,250,000
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:       orDefault(l.Connections, 512),
		ConnectionRate:    orDefault(l.ConnectionRate, 200),
		Names:             orDefault(l.Names, 4096),
		NamesUnrestricted: orDefault(l.NamesUnrestricted, 32768),
		DNSRate:           orDefault(l.DNSRate, 500),
		HelloSize:         orDefault(l.HelloSize, 18<<10),
		Hello:             orDefault(l.Hello, 5*time.Second),
		HTTPHeadSize:      orDefault(l.HTTPHeadSize, 64<<10),
		HTTPHead:          orDefault(l.HTTPHead, 10*time.Second),
		Resolve:           orDefault(l.Resolve, 5*time.Second),
		Connect:           orDefault(l.Connect, 10*time.Second),
		Idle:              orDefault(l.Idle, 15*time.Minute),
		UDPFlows:          orDefault(l.UDPFlows, 256),
		UDPIdle:           orDefault(l.UDPIdle, time.Minute),
		UDPUnanswered:     orDefault(l.UDPUnanswered, 10*time.Second),
		UDPRate:           orDefault(l.UDPRate, 1_250_000),
	}
}

func orDefault[T int | float64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Meta says on whose behalf a network exists; records carry it.
type Meta struct {
	SessionID     string `json:"session_id"`
	WorkspaceID   string `json:"workspace_id"`
	EnvironmentID string `json:"environment_id"`
	Source        string `json:"source"` // SourceSandbox or SourceBuild
	// Base names what the policy's registries were learned from, for whoever
	// compiles it again. It means nothing here.
	Base string `json:"base,omitempty"`
}
