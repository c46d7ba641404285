package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/control/looptest"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/store"
)

// BenchmarkStream commits events of one session, durably, and reads them from so
// many streams over HTTP; B/stream is what an idle stream holds in this process,
// both ends of the connection and its goroutines' stacks included.
func BenchmarkStream(b *testing.B) {
	for _, streams := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) { benchStream(b, streams) })
	}
}

func benchStream(b *testing.B, streams int) {
	ctx, cancel := context.WithCancel(context.Background())
	db, err := store.Open(ctx, store.Config{Path: b.TempDir() + "/db"})
	if err != nil {
		b.Fatal(err)
	}
	turns := control.NewTurns(db, nil)
	loop := looptest.New(turns, func(err error) { b.Error(err) })
	service := control.New(control.Config{Store: db, Templates: templates{"base"}, Turns: turns, Loop: loop})
	workspace, err := service.EnsureDefault(ctx, key, func(string) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	h, err := httpapi.New(httpapi.Config{Service: service, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ts := httptest.NewServer(h)
	defer func() {
		cancel()
		turns.Close()
		ts.Close()
		loop.Close()
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	}()
	caller := control.Caller{Workspace: workspace}
	env, err := service.CreateEnvironment(ctx, caller, api.EnvironmentCreate{Name: "e"})
	if err != nil {
		b.Fatal(err)
	}
	agent, err := service.CreateAgent(ctx, caller, api.AgentCreate{Name: "a", Model: api.ModelParams{ID: "m"}})
	if err != nil {
		b.Fatal(err)
	}
	session, err := service.CreateSession(ctx, caller, api.SessionCreate{Agent: api.AgentChoice{Type: api.ChoiceAgent, ID: agent.ID}, EnvironmentID: env.ID})
	if err != nil {
		b.Fatal(err)
	}
	before := held()
	var readers sync.WaitGroup
	for range streams {
		req, err := http.NewRequestWithContext(ctx, "GET", ts.URL+"/v1/sessions/"+session.ID+"/events/stream", nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("X-Api-Key", key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		readers.Go(func() {
			defer resp.Body.Close()
			lines := bufio.NewScanner(resp.Body)
			for n := 0; n < b.N && lines.Scan(); {
				if bytes.HasPrefix(lines.Bytes(), []byte("event: agent.message")) {
					n++
				}
			}
		})
	}
	each := float64(held()-before) / float64(streams)
	b.ResetTimer()
	for n := range b.N {
		_, _, err := turns.Commit(ctx, control.Step{Workspace: workspace, Session: session.ID, After: int64(n), Events: []control.EventRecord{{
			ID: turns.EventID(), Type: api.EventAgentMessage, Fields: []byte(`{"content":[{"type":"text","text":"The tests pass now; shall I go on?"}]}`)}}})
		if err != nil {
			b.Fatal(err)
		}
	}
	readers.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "committed/s")
	b.ReportMetric(float64(b.N*streams)/b.Elapsed().Seconds(), "delivered/s")
	b.ReportMetric(each, "B/stream")
}

// held is what the process holds in memory after a collection.
func held() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
