package store

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// BenchmarkCreateEnvironment is durable creates by so many clients at once; the
// directory must be on a real disk for the figure to mean anything.
func BenchmarkCreateEnvironment(b *testing.B) {
	for _, clients := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := open(b, b.TempDir()+"/db")
			seedWorkspace(b, s)
			took := make([]time.Duration, b.N)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range clients {
				wg.Go(func() {
					for n := int(next.Add(1)) - 1; n < b.N; n = int(next.Add(1)) - 1 {
						begun := time.Now()
						if err := s.CreateEnvironment(b.Context(), record(n)); err != nil {
							b.Error(err)
							return
						}
						took[n] = time.Since(begun)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
			b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-µs")
		})
	}
}

// filled is a store with so many environments.
func filled(b *testing.B, rows int) *Store {
	b.Helper()
	s := open(b, b.TempDir()+"/db")
	seedWorkspace(b, s)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for n := int(next.Add(1)) - 1; n < rows; n = int(next.Add(1)) - 1 {
				if err := s.CreateEnvironment(b.Context(), record(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return s
}

// BenchmarkRead is reads by id and pages of 20, at two sizes of the table.
func BenchmarkRead(b *testing.B) {
	for _, rows := range []int{100, 100_000} {
		s := filled(b, rows)
		b.Run(fmt.Sprintf("get/rows=%d", rows), func(b *testing.B) {
			var n atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Environment(b.Context(), "w", record(int(n.Add(7919))%rows).ID); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
		})
		for name, at := range map[string]int{"first": -1, "middle": rows / 2} {
			page := control.Page{Limit: 20}
			if at >= 0 {
				page.After = &control.Mark{CreatedAt: record(at).CreatedAt, ID: record(at).ID}
			}
			b.Run(fmt.Sprintf("list-%s/rows=%d", name, rows), func(b *testing.B) {
				for b.Loop() {
					if recs, _, err := s.ListEnvironments(b.Context(), "w", false, page); err != nil || len(recs) != 20 {
						b.Fatal(len(recs), err)
					}
				}
			})
		}
	}
}
