package control

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
)

// TestContacts: what a build says of its network names each host once, by the
// best name there is.
func TestContacts(t *testing.T) {
	t.Parallel()
	refused := func(r egress.Record) egress.Record {
		r.Verdict = egress.VerdictRefused
		return r
	}
	got := contacts([]egress.Record{
		{Host: "pip.example.com", DestPort: 443, Protocol: "tls", Verdict: egress.VerdictAllowed, Count: 1},
		{Host: "pip.example.com", DestPort: 443, Protocol: "tls", Verdict: egress.VerdictFailed, Count: 2},
		refused(egress.Record{Host: "evil.example.com", Protocol: "dns", Reason: egress.ReasonNameNotAllowed}),
		refused(egress.Record{ClaimedHost: "evil.example.com", DestAddress: "198.18.0.1", DestPort: 443, Protocol: "tls", Reason: egress.ReasonNameNotAllowed}),
		refused(egress.Record{ClaimedHost: egress.InvalidHost, DestAddress: "192.0.2.1", DestPort: 80, Protocol: "http", Reason: egress.ReasonNoMapping}),
		refused(egress.Record{ClaimedHost: "pip.example.com", DestAddress: "192.0.2.2", DestPort: 443, Protocol: "tls", Reason: egress.ReasonNoMapping}),
		refused(egress.Record{DestAddress: "192.0.2.3", DestPort: 22, Protocol: "tcp", Reason: egress.ReasonNoMapping}),
		refused(egress.Record{Host: "git.example.com", Protocol: "dns", Reason: egress.ReasonNameNotAllowed}),
		refused(egress.Record{DestAddress: "198.18.0.1", DestPort: 22, Protocol: "tcp", Reason: egress.ReasonNameNotAllowed}),
		refused(egress.Record{ClaimedHost: egress.InvalidHost, DestAddress: "198.18.0.1", DestPort: 443, Protocol: "tls", Reason: egress.ReasonNameNotAllowed}),
	})
	want := []image.Contact{
		{Host: "pip.example.com", Port: 443, Allowed: true, Count: 3},
		{Host: "evil.example.com", Port: 443, Count: 1},
		{Host: "192.0.2.1", Port: 80, Count: 1},
		{Host: "192.0.2.2", Port: 443, Count: 1},
		{Host: "192.0.2.3", Port: 22, Count: 1},
		{Host: "git.example.com", Port: 22, Count: 1}, // the one connection that said nothing
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
