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
	VerdictAllowed Verdict = "allowed"
	VerdictRefused Verdict = "refused"
	VerdictFailed  Verdict = "failed" // allowed, but resolving or connecting failed
)

// Reason says why. The list is closed.
type Reason string

// The reasons.
const (
	ReasonOK                 Reason = "ok"
	ReasonNameNotAllowed     Reason = "name_not_allowed"
	ReasonNoMapping          Reason = "no_mapping"
	ReasonStaleMapping       Reason = "stale_mapping"
	ReasonPortNotAllowed     Reason = "port_not_allowed"
	ReasonProtocolNotAllowed Reason = "protocol_not_allowed"
	ReasonHelloMalformed     Reason = "hello_malformed"
	ReasonSNIMissing         Reason = "sni_missing"
	ReasonSNIMismatch        Reason = "sni_mismatch"
	ReasonECHPresent         Reason = "ech_present"
	ReasonHTTPMalformed      Reason = "http_malformed"
	ReasonHostMissing        Reason = "host_missing"
	ReasonHostMismatch       Reason = "host_mismatch"
	ReasonAddressNotPublic   Reason = "address_not_public"
	ReasonBlocklisted        Reason = "blocklisted"
	ReasonUDPNotAllowed      Reason = "udp_not_allowed"
	ReasonResolveFailed      Reason = "resolve_failed"
	ReasonConnectFailed      Reason = "connect_failed"
	ReasonConnectionLimit    Reason = "connection_limit"
	ReasonRateLimit          Reason = "rate_limit"
	ReasonNameLimit          Reason = "name_limit"
	ReasonPolicyChanged      Reason = "policy_changed"
	ReasonSessionEnded       Reason = "session_ended"
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
	ID            string    `json:"id"` // sorts by time
	Time          time.Time `json:"time"`
	WorkspaceID   string    `json:"workspace_id"`
	SessionID     string    `json:"session_id"`
	EnvironmentID string    `json:"environment_id"`
	Source        string    `json:"source"`
	Generation    int64     `json:"generation"` // of the policy that decided
	// Host is the name that the destination address stands for, or empty.
	Host string `json:"host"`
	// ClaimedHost is the name the client sent in TLS or HTTP where it differs
	// or where there is no Host; "invalid" if it was no canonical name.
	ClaimedHost   string  `json:"claimed_host"`
	DestAddress   string  `json:"dest_address"` // as the sandbox addressed it
	DestPort      int     `json:"dest_port"`
	DialedAddress string  `json:"dialed_address"`
	Protocol      string  `json:"protocol"` // tls, http, tcp, udp, dns
	Verdict       Verdict `json:"verdict"`
	Reason        Reason  `json:"reason"`
	Rule          string  `json:"rule"`
	// The rest is final when the connection or request has ended.
	BytesUp    int64 `json:"bytes_up"`
	BytesDown  int64 `json:"bytes_down"`
	DurationMS int64 `json:"duration_ms"`
	ECH        bool  `json:"ech"`
	// Count of identical refusals within ten seconds that this record stands for.
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
	// Verdict, if not empty, is the only one returned.
	Verdict string
	// Limit is how many to return at most; zero means all that are kept.
	Limit int
	// Before, if not empty, is the id of a record: only older ones are returned.
	Before string
	// After, if not empty, is the id of a record: only newer ones are returned.
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
