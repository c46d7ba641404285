package control

import (
	"testing"

	"github.com/atoll-run/atoll/api"
)

// The bounds are written here as numbers of their own, so that one that was made
// larger by mistake is seen.

// TestQueueLimits: 1000 events of 64 MiB together may wait for a session.
func TestQueueLimits(t *testing.T) {
	t.Parallel()
	const most, mostBytes = 1000, 64 << 20
	events := func(n, size int) []EventRecord {
		out := make([]EventRecord, n)
		for i := range out {
			out[i].Fields = make([]byte, size)
		}
		return out
	}
	half := make([]byte, mostBytes/2)
	large := func(more int) []EventRecord {
		return []EventRecord{{Fields: half[:len(half):len(half)]}, {Fields: make([]byte, more)}}
	}
	for _, tt := range []struct {
		what         string
		queued, more []EventRecord
		full         bool
	}{
		{"nothing", nil, nil, false},
		{"the last one that fits", events(most-1, 2), events(1, 2), false},
		{"one too many", events(most, 2), events(1, 2), true},
		{"a request that is too long", events(most-50, 2), events(51, 2), true},
		{"a request that is too long for an empty queue", nil, events(most+1, 2), true},
		{"nothing more for a full queue", events(most, 2), nil, false},
		{"all the bytes", large(0), []EventRecord{{Fields: half}}, false},
		{"a byte too many, most of them queued", large(1), []EventRecord{{Fields: half}}, true},
		{"a byte too many in one request", nil, append(large(1), EventRecord{Fields: half}), true},
	} {
		err := checkQueue("sesn_x", tt.queued, tt.more)
		f, ok := AsFault(err)
		if tt.full != ok || ok && f.Kind != RateLimited || err != nil && !ok {
			t.Errorf("%s: got %v, want refused: %v", tt.what, err, tt.full)
		}
	}
}

// TestSendLimits: a request has one to a hundred events.
func TestSendLimits(t *testing.T) {
	t.Parallel()
	for n, refused := range map[int]bool{0: true, 1: false, 100: false, 101: true, 1000: true} {
		events := make([]api.EventParams, n)
		for i := range events {
			events[i].Type = api.EventUserMessage
		}
		if err := checkSend(events); (err != nil) != refused {
			t.Errorf("%d events: got %v, want refused: %v", n, err, refused)
		}
	}
}
