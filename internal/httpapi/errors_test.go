package httpapi

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store"
)

// TestErrorTable: every kind of fault has its place in the table.
func TestErrorTable(t *testing.T) {
	t.Parallel()
	for _, kind := range control.Kinds {
		if wire, ok := errorTable[kind]; !ok || wire.status < 400 || wire.anthropic == "" || wire.sandbase == "" {
			t.Errorf("%s: %+v", kind, wire)
		}
	}
	if len(errorTable) != len(control.Kinds) {
		t.Errorf("%d kinds in the table, %d in control", len(errorTable), len(control.Kinds))
	}
}

// TestPanic: a panic is a 500 with a request id, or breaks the reply off when
// it has begun; the server goes on.
func TestPanic(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "atoll.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // nothing was written
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	var log lockedLog
	s := &server{service: control.New(control.Config{Store: db}), log: slog.New(slog.NewTextHandler(&log, nil)), metrics: m}
	ts := httptest.NewServer(s.observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = w.Write(make([]byte, 1<<16))
		}
		panic("the bug of today")
	})))
	resp, err := http.Get(ts.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close() // only the status counts
	if resp.StatusCode != 500 || !strings.HasPrefix(resp.Header.Get("Request-Id"), "req_") {
		t.Errorf("%d, %v", resp.StatusCode, resp.Header)
	}
	resp, err = http.Get(ts.URL + "/begun")
	if err == nil {
		_, err = resp.Body.Read(make([]byte, 1))
		for err == nil {
			_, err = resp.Body.Read(make([]byte, 1<<16))
		}
		_ = resp.Body.Close() // it was broken off
	}
	if err == nil || err.Error() == "EOF" {
		t.Errorf("a reply that was broken off ends with %v", err)
	}
	ts.Close()
	if !strings.Contains(log.String(), "the bug of today") {
		t.Errorf("log: %s", log.String())
	}
}

// lockedLog is a log that is read while it may be written.
type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
