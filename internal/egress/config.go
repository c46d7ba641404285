package egress

import (
	"log/slog"
	"net/netip"
	"time"
)

// Config is what a [Gateway] needs to know. The zero value of each field but Dir
// is of use.
type Config struct {
	// Dir is where networks are kept: the mounts that hold namespaces open, and
	// for each session its policy and its table of names. It is made if it is
	// not there. Each server needs its own.
	Dir string
	// Logger gets a line for each refusal; nil means none.
	Logger *slog.Logger
	// DenyCIDRs are ranges that no sandbox reaches, besides those built in; see
	// [SafetyList]. Empty: none.
	DenyCIDRs []netip.Prefix
	// Exempt lets single hosts be at addresses that are not public. One that
	// names port 25 opens that under mode unrestricted. Empty: none.
	Exempt []Exemption
	// BlockHosts are entries as [ParseEntry] takes them that no policy opens.
	// Empty: none.
	BlockHosts []string
	// BlockPorts are TCP and UDP ports, 1 to 65535, that no policy opens. Empty:
	// none, besides 25.
	BlockPorts []int
	// OpenPorts are ports beside 80 and 443 that are open, unchecked, on hosts
	// that a policy of mode limited allows. Empty: none.
	OpenPorts []OpenPort
	// AllowECH lets through TLS whose server name is encrypted. The name inside
	// cannot be checked then. False: such a connection is refused, unless the host
	// cannot have a name inside.
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
	// Limits of each session; zero fields mean the defaults.
	Limits Limits
	// Now is the clock that records are stamped by; nil means time.Now. Its times
	// have a monotonic part, as those of time.Now have: durations are taken from
	// that, so that steps of the wall clock do not show in them.
	Now func() time.Time
	// OnDecision, if not nil, is called for each decision as it is made, before
	// byte counts are known. It must not block.
	OnDecision func(Record)
}

// Limits bound what one session may use. Zero, or less, means the default.
type Limits struct {
	// Connections over TCP, DNS aside, that are open at a time; default 512.
	Connections int
	// ConnectionRate is new TCP connections and UDP flows per second; default 200.
	// Twice as many may come at once.
	ConnectionRate float64
	// Names that have a synthetic address, beside those that the policy lists;
	// default 4096.
	Names int
	// NamesUnrestricted is Names under mode unrestricted; default 32768.
	NamesUnrestricted int
	// DNSRate is questions per second; default 500, and as many at once.
	DNSRate float64
	// HelloSize is bytes of a ClientHello; default 18 KiB.
	HelloSize int
	// Hello is the time to send a connection's first bytes and the ClientHello;
	// default 5 s.
	Hello time.Duration
	// HTTPHeadSize is bytes of a plain-HTTP request's head; default 64 KiB.
	HTTPHeadSize int
	// HTTPHead is the time to send that head; default 10 s.
	HTTPHead time.Duration
	// Resolve is the time for the host's resolver to answer about a name, repeats
	// included; default 5 s.
	Resolve time.Duration
	// Connect is the time to connect to any address of a name; default 10 s.
	Connect time.Duration
	// Idle ends a TCP connection on which nothing moves, either way, for so long;
	// default 15 min.
	Idle time.Duration
	// UDPFlows are pairs of a sandbox's port and a destination at a time; default
	// 256.
	UDPFlows int
	// UDPIdle ends a flow on which nothing moves for so long; default 60 s.
	UDPIdle time.Duration
	// UDPUnanswered is UDPIdle while the peer has never answered; default 10 s.
	UDPUnanswered time.Duration
	// UDPRate is bytes per second of all flows that are not answered, taken
	// together; default 1,250,000. A quarter of it, or 64 KiB if that is more, may
	// come at once.
	UDPRate int
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

// Meta says on whose behalf a network exists; records carry it. The package
// attaches no meaning to the ids.
type Meta struct {
	// SessionID is the session's id, or the build's.
	SessionID string `json:"session_id"`
	// WorkspaceID is the session's workspace; empty for a build.
	WorkspaceID string `json:"workspace_id"`
	// EnvironmentID is the session's environment; empty for a build.
	EnvironmentID string `json:"environment_id"`
	// Source is SourceSandbox or SourceBuild: what records of the network's
	// connections have as theirs.
	Source string `json:"source"`
	// Base names what the policy's registries were learned from, for whoever
	// makes the policy again; empty if it has none. It means nothing here.
	Base string `json:"base,omitempty"`
}
