package egress

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Verdict is the outcome of a decision.
type Verdict string

// The verdicts.
const (
	// VerdictAllowed: the connection was made, the request passed on.
	VerdictAllowed Verdict = "allowed"
	// VerdictRefused: policy, operator, guard or a limit said no, or the
	// connection was ended from outside.
	VerdictRefused Verdict = "refused"
	// VerdictFailed: it was allowed, but resolving or connecting failed.
	VerdictFailed Verdict = "failed"
)

// Reason says why. The list is closed.
type Reason string

// The reasons.
const (
	// ReasonOK: a rule allows it.
	ReasonOK Reason = "ok"
	// ReasonNameNotAllowed: no rule allows the name, or it is none.
	ReasonNameNotAllowed Reason = "name_not_allowed"
	// ReasonNoMapping: it goes to an address that stands for no name, under a mode
	// that does not allow bare addresses.
	ReasonNoMapping Reason = "no_mapping"
	// ReasonStaleMapping: the name has an address from before, but no rule allows
	// it any more.
	ReasonStaleMapping Reason = "stale_mapping"
	// ReasonPortNotAllowed: the name is allowed, on other ports.
	ReasonPortNotAllowed Reason = "port_not_allowed"
	// ReasonProtocolNotAllowed: what the client says first is neither TLS nor HTTP
	// on a port where these are expected, or HTTP of a kind that is not passed on.
	ReasonProtocolNotAllowed Reason = "protocol_not_allowed"
	// ReasonHelloMalformed: the ClientHello cannot be read, is too long or too late.
	ReasonHelloMalformed Reason = "hello_malformed"
	// ReasonSNIMissing: the ClientHello names no server.
	ReasonSNIMissing Reason = "sni_missing"
	// ReasonSNIMismatch: the ClientHello names another server than the address
	// stands for.
	ReasonSNIMismatch Reason = "sni_mismatch"
	// ReasonECHPresent: the ClientHello may carry an encrypted server name.
	ReasonECHPresent Reason = "ech_present"
	// ReasonHTTPMalformed: what was sent is no request of HTTP/1.0 or HTTP/1.1.
	ReasonHTTPMalformed Reason = "http_malformed"
	// ReasonHostMissing: the request names no host.
	ReasonHostMissing Reason = "host_missing"
	// ReasonHostMismatch: the request names another host or port than the
	// connection was made to.
	ReasonHostMismatch Reason = "host_mismatch"
	// ReasonAddressNotPublic: the dial guard refuses an address of the host.
	ReasonAddressNotPublic Reason = "address_not_public"
	// ReasonBlocklisted: the operator blocks the name or the port.
	ReasonBlocklisted Reason = "blocklisted"
	// ReasonUDPNotAllowed: UDP other than DNS, under a mode that does not relay it.
	ReasonUDPNotAllowed Reason = "udp_not_allowed"
	// ReasonResolveFailed: the host's resolver gave no address.
	ReasonResolveFailed Reason = "resolve_failed"
	// ReasonConnectFailed: no address of the host answered.
	ReasonConnectFailed Reason = "connect_failed"
	// ReasonConnectionLimit: as many are open as the session may have.
	ReasonConnectionLimit Reason = "connection_limit"
	// ReasonRateLimit: more come per second than the session may have.
	ReasonRateLimit Reason = "rate_limit"
	// ReasonNameLimit: as many names have an address as the session may have.
	ReasonNameLimit Reason = "name_limit"
	// ReasonPolicyChanged: the connection was ended because policy or operator do
	// not allow it any more.
	ReasonPolicyChanged Reason = "policy_changed"
	// ReasonSessionEnded: the connection was ended with the session's network.
	ReasonSessionEnded Reason = "session_ended"
)

// verdict is the outcome that goes with a reason.
func (r Reason) verdict() Verdict {
	switch r {
	case ReasonOK:
		return VerdictAllowed
	case ReasonResolveFailed, ReasonConnectFailed:
		return VerdictFailed
	}
	return VerdictRefused
}

// Record is one decision: of a TCP connection, of a request on the plain-HTTP
// gate, of a UDP flow, or of a name that was refused. In JSON every field is
// there, and null where there is nothing to say. It holds nothing of what was sent but
// host names, and those in canonical form only.
type Record struct {
	// ID identifies the record among those of its network. Ids sort as the
	// decisions were made, also if the wall clock steps back.
	ID string `json:"id"`
	// Time is when the connection or the request came; in UTC where
	// [Gateway.Records] returns it.
	Time time.Time `json:"time"`
	// WorkspaceID is that of the network's Meta, as are the next two.
	WorkspaceID string `json:"workspace_id"`
	// SessionID is the session or build that the record is about.
	SessionID string `json:"session_id"`
	// EnvironmentID is the session's; empty for a build.
	EnvironmentID string `json:"environment_id"`
	// Source is who asked: SourceSandbox and so on.
	Source string `json:"source"`
	// Generation counts the policies of the network, from 1; it is that of the
	// policy that decided. Zero: the network was not open yet.
	Generation int64 `json:"generation"`
	// Host is the name that the destination address stands for or that was asked
	// for, in canonical form; empty if there is none.
	Host string `json:"host"`
	// ClaimedHost is the name the client sent in TLS or HTTP where it differs
	// or where there is no Host; [InvalidHost] if it was no canonical name.
	// Empty: it sent the Host, or none.
	ClaimedHost string `json:"claimed_host"`
	// DestAddress is the destination as it was addressed: by a sandbox a synthetic
	// address mostly. Empty: unknown, or a name was given.
	DestAddress string `json:"dest_address"`
	// DestPort is the port there; zero: none, or unknown.
	DestPort int `json:"dest_port"`
	// DialedAddress is "address:port" that was connected to; empty if none was.
	DialedAddress string `json:"dialed_address"`
	// Protocol is as far as it was found out: tls, http, tcp, udp or dns.
	Protocol string `json:"protocol"`
	// Verdict is the outcome. It follows from Reason.
	Verdict Verdict `json:"verdict"`
	// Reason says why.
	Reason Reason `json:"reason"`
	// Rule is what allowed it: "allowed_hosts[0]", an endpoint's rule,
	// "unrestricted", "observe" or "operator"; or whose rule was against it, where
	// that was not the policy's. Empty: none was, or no rule says more than Reason.
	Rule string `json:"rule"`
	// BytesUp were sent to the destination. This and the next two are zero until
	// the connection or request has ended.
	BytesUp int64 `json:"bytes_up"`
	// BytesDown were received from there.
	BytesDown int64 `json:"bytes_down"`
	// DurationMS is milliseconds from Time to the end.
	DurationMS int64 `json:"duration_ms"`
	// ECH: the ClientHello had an encrypted part that may hold a server name.
	ECH bool `json:"ech"`
	// Count of identical refusals within ten seconds that this record stands for,
	// at least 1.
	Count int64 `json:"count"`
}

// MarshalJSON writes null for what is empty.
func (r Record) MarshalJSON() ([]byte, error) {
	type plain Record
	null := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	var port *int
	if r.DestPort != 0 {
		port = &r.DestPort
	}
	return json.Marshal(struct {
		plain
		Host          *string `json:"host"`
		ClaimedHost   *string `json:"claimed_host"`
		DestAddress   *string `json:"dest_address"`
		DestPort      *int    `json:"dest_port"`
		DialedAddress *string `json:"dialed_address"`
		Rule          *string `json:"rule"`
	}{plain(r), null(r.Host), null(r.ClaimedHost), null(r.DestAddress), port, null(r.DialedAddress), null(r.Rule)})
}

// record completes a record, keeps it, and tells the log and the metrics.
func (g *Gateway) record(st *state, r Record) *Record {
	if r.Time.IsZero() {
		r.Time = g.now()
	}
	if r.Source == "" {
		r.Source = st.meta.Source
	}
	r.WorkspaceID, r.SessionID, r.EnvironmentID = st.meta.WorkspaceID, st.meta.SessionID, st.meta.EnvironmentID
	r.Generation, r.Verdict = st.generation, r.Reason.verdict()
	kept, fresh := st.journal.add(r)
	if fresh {
		g.logRecord(st, r)
	}
	if f := g.config.OnDecision; f != nil {
		f(r)
	}
	return kept
}

// logRecord writes the line about a new record: allowed ones for debugging,
// others for the operator, and of those only so many.
func (g *Gateway) logRecord(st *state, r Record) {
	level, more := slog.LevelDebug, []any(nil)
	if r.Verdict != VerdictAllowed {
		level = slog.LevelInfo
		skipped, ok := st.journal.line()
		if !ok {
			return
		}
		if skipped > 0 {
			more = []any{"left_out", skipped}
		}
	}
	// The names of the fields are those of the record everywhere.
	g.log.Log(context.Background(), level, "egress", append([]any{"workspace_id", r.WorkspaceID, "session_id", r.SessionID, "environment_id", r.EnvironmentID,
		"source", r.Source, "generation", r.Generation, "verdict", string(r.Verdict), "reason", string(r.Reason), "rule", r.Rule,
		"host", r.Host, "claimed_host", r.ClaimedHost, "dest_address", r.DestAddress, "dest_port", r.DestPort, "dialed_address", r.DialedAddress,
		"protocol", r.Protocol, "ech", r.ECH}, more...)...)
}

// Filter selects records.
type Filter struct {
	// Verdict is that of the records to return; empty: all.
	Verdict string
	// Limit is how many to return at most; zero, or less: all that are kept.
	Limit int
	// Before is the id of a record: only older ones are returned. Empty: from the
	// newest on.
	Before string
	// After is the id of a record: only newer ones are returned. Empty: down to the
	// oldest.
	After string
}

const (
	ringAll      = 1000
	ringRefused  = 500
	collapseTime = 10 * time.Second
	collapseKeys = 256
	// Records are bounded, and so has to be what a sandbox can write to the
	// host's disk through the log.
	logBurst = 500
	logRate  = 10 // lines a second
)

// journal keeps the last records of one session. Refusals have a ring of their
// own, so that many allowed connections do not push them out.
type journal struct {
	mu      sync.Mutex // guards everything below, and the fields of kept records
	last    int64      // number of the newest id
	rest    []*Record  // oldest first, at most ringAll
	refused []*Record  // oldest first, at most ringRefused
	recent  map[collapseKey]*Record
	lines   *rate.Limiter // nil: none yet
	skipped int           // lines left out since the last one
}

// line tells whether a refusal gets a line in the log, and how many did not
// since the last that got one.
func (j *journal) line() (skipped int, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lines == nil {
		j.lines = rate.NewLimiter(logRate, logBurst)
	}
	if !j.lines.Allow() {
		j.skipped++
		return 0, false
	}
	skipped, j.skipped = j.skipped, 0
	return skipped, true
}

type collapseKey struct {
	host, claimed, dest, protocol string
	source                        string
	port                          int
	reason                        Reason
	generation                    int64
}

// add keeps r, or counts it with an identical refusal of the last ten seconds.
// It reports whether the record is a new one, and returns the kept record, to
// be changed only through finish.
func (j *journal) add(r Record) (*Record, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Count = 1
	if r.Verdict == VerdictAllowed {
		r.ID = j.id(r.Time)
		j.rest = push(j.rest, &r, ringAll)
		return &r, true
	}
	key := collapseKey{r.Host, r.ClaimedHost, r.DestAddress, r.Protocol, r.Source, r.DestPort, r.Reason, r.Generation}
	if old := j.recent[key]; old != nil && r.Time.Sub(old.Time).Abs() < collapseTime {
		old.Count++
		return old, false
	}
	r.ID = j.id(r.Time)
	if j.recent == nil || len(j.recent) >= collapseKeys {
		j.recent = map[collapseKey]*Record{}
	}
	j.recent[key] = &r
	if r.Verdict == VerdictRefused {
		j.refused = push(j.refused, &r, ringRefused)
	} else {
		j.rest = push(j.rest, &r, ringAll)
	}
	return &r, true
}

// id makes ids that sort as they were made, also if the wall clock steps back.
func (j *journal) id(t time.Time) string {
	n := t.UnixMicro()
	if n <= j.last {
		n = j.last + 1
	}
	j.last = n
	return fmt.Sprintf("egr_%014x", n)
}

// IsRecordID tells whether s has the form of a record's id.
func IsRecordID(s string) bool {
	digits, ok := strings.CutPrefix(s, "egr_")
	return ok && len(digits) == 14 && strings.Trim(digits, "0123456789abcdef") == ""
}

func push(ring []*Record, r *Record, size int) []*Record {
	if len(ring) >= size {
		ring[0] = nil // the backing array lives on for a while
		ring = ring[len(ring)-size+1:]
	}
	return append(ring, r)
}

// finish sets what is known only at the end of a connection or request.
func (j *journal) finish(r *Record, up, down int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.BytesUp += up
	r.BytesDown += down
	r.DurationMS = max(0, time.Since(r.Time).Milliseconds())
}

// list returns records newest first.
func (j *journal) list(f Filter) []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := []Record{}
	a, b := j.rest, j.refused
	for len(a) > 0 || len(b) > 0 {
		var r *Record
		if len(b) == 0 || len(a) > 0 && a[len(a)-1].ID > b[len(b)-1].ID {
			r, a = a[len(a)-1], a[:len(a)-1]
		} else {
			r, b = b[len(b)-1], b[:len(b)-1]
		}
		if f.After != "" && r.ID <= f.After {
			break // and so are all that follow
		}
		if f.Before != "" && r.ID >= f.Before || f.Verdict != "" && f.Verdict != string(r.Verdict) {
			continue
		}
		out = append(out, *r)
		out[len(out)-1].Time = r.Time.UTC()
		if f.Limit > 0 && len(out) == f.Limit {
			break
		}
	}
	return out
}
