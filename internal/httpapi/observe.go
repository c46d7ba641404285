package httpapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atoll-run/atoll/internal/control"
)

// note is what is known of one request, for its log line and its errors. It
// belongs to the goroutine that serves the request.
type note struct {
	requestID string
	dialect   control.Dialect // of the presented key, valid or not
	caller    control.Caller  // zero before authentication
	err       error           // why it failed
	body      *patientBody    // nil: the request has none
	memory    *memory         // what it has of the memory for requests
}

type noteKey struct{}

func noteOf(r *http.Request) *note {
	if n, ok := r.Context().Value(noteKey{}).(*note); ok {
		return n
	}
	panic("httpapi: a request that observe has not seen")
}

func noteCaller(r *http.Request, caller control.Caller) {
	n := noteOf(r)
	n.caller = caller
	n.memory.holder = caller.Workspace
}

// metrics of requests.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atoll_http_requests_total", Help: "Requests by route, method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "atoll_http_request_duration_seconds", Help: "Time to answer a request, streams included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}, []string{"route", "method"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering request metrics: %w", err)
		}
	}
	return m, nil
}

// response remembers the status that was written.
type response struct {
	http.ResponseWriter
	status int // 0 before the header
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// observe gives each request an id, a log line and its metrics, and turns a
// panic into a 500.
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		n := &note{requestID: s.service.RequestID(), dialect: control.DialectOf(presented(r)), memory: &memory{budget: s.memory}}
		r = r.WithContext(context.WithValue(r.Context(), noteKey{}, n))
		w := &response{ResponseWriter: rw}
		if r.Body != nil && r.Body != http.NoBody {
			n.body = &patientBody{ReadCloser: r.Body, conn: http.NewResponseController(rw), wait: s.bodyWait}
			r.Body = n.body
		}
		w.Header().Set("Request-Id", n.requestID)
		defer func() {
			if p := recover(); p != nil {
				s.recovered(w, r, p)
			}
			n.memory.end()
			if n.body != nil {
				n.body.giveUp() // of what the handler has left, little is read and not for long
			}
			s.record(w, r, n, time.Since(start))
		}()
		next.ServeHTTP(w, r)
	})
}

// recovered answers for a handler that panicked.
func (s *server) recovered(w *response, r *http.Request, p any) {
	if p != http.ErrAbortHandler {
		s.log.ErrorContext(r.Context(), "panic", "request_id", noteOf(r).requestID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
	if w.status == 0 {
		s.writeError(w, r, fmt.Errorf("panic: %v", p))
		return
	}
	// The reply has begun: all that is left is to break it off, so that the
	// client does not take it for whole.
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close() // it is being given up
	}
}

func (s *server) record(w *response, r *http.Request, n *note, took time.Duration) {
	route, method := s.routeName(r), methodName(r.Method)
	s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(w.status)).Inc()
	s.metrics.duration.WithLabelValues(route, method).Observe(took.Seconds())
	level := slog.LevelInfo
	if w.status >= 500 {
		level = slog.LevelError
	}
	args := []any{
		"method", method, "route", route, "status", w.status, "duration_ms", took.Milliseconds(),
		"request_id", n.requestID,
	}
	if n.caller.Workspace != "" {
		args = append(args, "workspace_id", n.caller.Workspace, "key_id", n.caller.KeyID)
	}
	if n.err != nil && w.status >= 400 {
		args = append(args, "error", n.err)
	}
	s.log.Log(r.Context(), level, "request", args...)
}

// routeName is the pattern that a request matched, never its path.
func (s *server) routeName(r *http.Request) string {
	if r.Pattern == "" || r.Pattern == "/" {
		return "other"
	}
	return r.Pattern
}

func methodName(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return method
	}
	return "other"
}
