package store

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// BenchmarkAppend is durable steps of three events, as the agent loop makes
// them, by so many sessions at once; the directory must be on a real disk for the
// figure to mean anything.
func BenchmarkAppend(b *testing.B) {
	for _, sessions := range []int{1, 32, 200} {
		b.Run(fmt.Sprintf("sessions=%d", sessions), func(b *testing.B) {
			s := open(b, b.TempDir()+"/db")
			seedWorkspace(b, s)
			for i := range sessions {
				seedSession(b, s, fmt.Sprint("sesn_", i))
			}
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range sessions {
				wg.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						change := control.LogChange{}
						for k := range 3 {
							change.Log = append(change.Log, control.EventRecord{ID: fmt.Sprintf("sevt_%d_%d", n, k), Type: "agent.tool_use",
								CreatedAt: time.Now(), ProcessedAt: time.Now(), Fields: []byte(`{"name":"bash","input":{"command":"go test ./..."},"evaluated_permission":"allow"}`)})
						}
						if _, err := s.ChangeLog(context.Background(), "w", fmt.Sprint("sesn_", i),
							func(control.LogState) (control.LogChange, error) { return change, nil }); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(3*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkEvents is pages of a long log.
func BenchmarkEvents(b *testing.B) {
	s := open(b, b.TempDir()+"/db")
	seedWorkspace(b, s)
	seedSession(b, s, "sesn_0")
	for n := range 5000 {
		if _, err := s.ChangeLog(b.Context(), "w", "sesn_0", step("sesn_0", n)); err != nil {
			b.Fatal(err)
		}
	}
	for _, limit := range []int{20, 1000} {
		b.Run(fmt.Sprintf("limit=%d", limit), func(b *testing.B) {
			for b.Loop() {
				if events, _, err := s.Events(b.Context(), "sesn_0", control.EventFilter{}, control.EventPage{After: 4000, Limit: limit}); err != nil || len(events) != limit {
					b.Fatal(len(events), err)
				}
			}
			b.ReportMetric(float64(limit*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
