// Package httpapi speaks: it turns HTTP into calls of internal/control and its
// answers into the wire's replies.
//
// Requests are answered in this order: unknown route 404, wrong method 405,
// credentials 401, then the request itself. Every reply carries a request-id
// header, and every error body the same id. An error that is not a
// [control.Fault] is logged and reaches the client as "Internal server error"
// only; so does a panic, which ends one request and never the server.
//
// A client without a key costs little: what is refused is answered before its
// body is read and its connection closed, and [Doors] counts the connections. A
// client with one waits in no request for bytes that do not come, and takes a
// share of the memory for bodies and outputs, never all of it.
package httpapi

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/atoll-run/atoll/internal/control"
)

// Config says what the handler works with.
type Config struct {
	// Service holds the resources and the keys. It must be set.
	Service *control.Service
	// Sandboxes serves the routes below /atoll/v1. Nil leaves them out.
	Sandboxes Sandboxes
	// Models serves /v1/models. Nil: a request for models is told that there is no
	// model endpoint.
	Models Models
	// Logger gets one line per request. Nil discards.
	Logger *slog.Logger
	// Metrics gets the request metrics and is served at /metrics. Nil means a
	// registry of the handler's own.
	Metrics *prometheus.Registry
	// Ping is how long a stream of events may be silent before it says that it is
	// alive; zero means 15 seconds.
	Ping time.Duration
	// StreamWait is how long a stream waits for a client that does not read,
	// before it is ended; zero means a minute.
	StreamWait time.Duration
	// BodyWait is how long a client that sends a body may send nothing of it before
	// it is given up; zero means 30 seconds. Over its whole length a body may take
	// that long and a second more for each KiB.
	BodyWait time.Duration
	// Memory is what bodies and collected outputs of all requests may take, in
	// bytes, held by workspaces; beyond it requests are answered 429. Nil means no
	// limit.
	Memory *control.Budget
	// Hosts are names, in lower case, under which /healthz and /metrics are asked
	// for on a loopback address, beside localhost and IP addresses: those of a
	// proxy on this machine.
	Hosts []string
	// Origins are the web pages that may ask the API from a browser, each as
	// [ParseOrigin] takes it. Empty: none, and no reply says anything of origins.
	Origins []string
	// Health tells whether the server can work, for /healthz. Nil means always.
	Health func(context.Context) error
}

// server answers requests.
type server struct {
	service   *control.Service
	sandboxes Sandboxes
	models    Models // nil: there is no endpoint
	log       *slog.Logger
	health    func(context.Context) error
	metrics   *metrics
	mux       *http.ServeMux

	memory *control.Budget
	hosts  []string

	ping, streamWait, bodyWait time.Duration
}

// handler answers one route for a caller who was let in. An error that it
// returns becomes the reply, unless it has written one.
type handler func(w http.ResponseWriter, r *http.Request, caller control.Caller) error

// methods are the handlers of one path by method.
type methods map[string]handler

// New makes the handler of the whole API.
func New(cfg Config) (http.Handler, error) {
	if cfg.Service == nil {
		return nil, errors.New("httpapi needs a service")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	s := &server{service: cfg.Service, sandboxes: cfg.Sandboxes, models: cfg.Models, log: cfg.Logger, health: cfg.Health, metrics: m, mux: http.NewServeMux(),
		memory: cfg.Memory, hosts: cfg.Hosts,
		ping: cmp.Or(cfg.Ping, 15*time.Second), streamWait: cmp.Or(cfg.StreamWait, time.Minute), bodyWait: cmp.Or(cfg.BodyWait, 30*time.Second)}
	for pattern, byMethod := range s.routes() {
		s.mux.Handle(pattern, s.serve(byMethod))
	}
	s.mux.Handle("/healthz", s.keyless(http.HandlerFunc(s.serveHealth)))
	s.mux.Handle("/metrics", s.keyless(promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{})))
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.writeError(w, r, &control.Fault{Kind: control.NotFound, Message: "Not found"})
	})
	var entry http.Handler = http.HandlerFunc(s.route)
	if len(cfg.Origins) > 0 {
		if entry, err = newOriginGate(cfg.Origins, entry); err != nil {
			return nil, err
		}
	}
	return s.observe(entry), nil
}

// routes is every path of the API.
func (s *server) routes() map[string]methods {
	all := map[string]methods{
		"/v1/environments":              {"POST": s.createEnvironment, "GET": s.listEnvironments},
		"/v1/environments/{id}":         {"GET": s.getEnvironment, "POST": s.updateEnvironment, "DELETE": s.deleteEnvironment},
		"/v1/environments/{id}/archive": {"POST": s.archiveEnvironment},
		"/v1/agents":                    {"POST": s.createAgent, "GET": s.listAgents},
		"/v1/agents/{id}":               {"GET": s.getAgent, "POST": s.updateAgent},
		"/v1/agents/{id}/archive":       {"POST": s.archiveAgent},
		"/v1/agents/{id}/versions":      {"GET": s.listAgentVersions},
		"/v1/models":                    {"GET": s.listModels},
		"/v1/models/{id}":               {"GET": s.getModel},
		"/v1/sessions":                  {"POST": s.createSession, "GET": s.listSessions},
		"/v1/sessions/{id}":             {"GET": s.getSession, "POST": s.updateSession, "DELETE": s.deleteSession},
		"/v1/sessions/{id}/archive":     {"POST": s.archiveSession},
		"/v1/sessions/{id}/resources":   {"GET": s.listResources},

		"/v1/sessions/{id}/events":                   {"POST": s.sendEvents, "GET": s.listEvents},
		"/v1/sessions/{id}/events/stream":            {"GET": s.streamEvents},
		"/v1/sessions/{id}/threads":                  {"GET": s.listThreads},
		"/v1/sessions/{id}/threads/{thread}":         {"GET": s.getThread},
		"/v1/sessions/{id}/threads/{thread}/archive": {"POST": s.archiveThread},
		"/v1/sessions/{id}/threads/{thread}/events":  {"GET": s.listThreadEvents},
		"/v1/sessions/{id}/threads/{thread}/stream":  {"GET": s.streamThread},
	}
	if s.sandboxes == nil {
		return all
	}
	all["/atoll/v1/sessions/{id}/exec"] = methods{"POST": s.exec, "GET": s.execSocket}
	all["/atoll/v1/sessions/{id}/shell"] = methods{"GET": s.shell}
	all["/atoll/v1/sessions/{id}/files"] = methods{"GET": s.readFile, "PUT": s.writeFile, "DELETE": s.removeFile}
	all["/atoll/v1/sessions/{id}/egress"] = methods{"GET": s.listEgress}
	all["/atoll/v1/environments/{id}/build"] = methods{"GET": s.getBuild, "POST": s.rebuild}
	all["/atoll/v1/environments/{id}/build/log"] = methods{"GET": s.getBuildLog}
	all["/atoll/v1/templates"] = methods{"GET": s.listTemplates}
	return all
}

// route keeps the mux from redirecting what is not a clean path: it is not
// there. Doubled slashes in a path that was percent-encoded are seen too.
func (s *server) route(w http.ResponseWriter, r *http.Request) {
	if refusal, ok := r.Context().Value(protocolKey{}).(protocolRefusal); ok {
		s.writeProtocolRefusal(w, r, refusal)
		return
	}
	clean := path.Clean("/" + r.URL.Path)
	if clean != r.URL.Path || r.Method == http.MethodConnect || strings.Contains(r.URL.Path, "\x00") {
		s.writeError(w, r, &control.Fault{Kind: control.NotFound, Message: "Not found"})
		return
	}
	s.mux.ServeHTTP(w, r)
}

// serve answers one path: method, credentials, then the handler.
func (s *server) serve(byMethod methods) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle, ok := byMethod[r.Method]
		if !ok && r.Method == http.MethodHead {
			handle, ok = byMethod[http.MethodGet]
		}
		if !ok {
			s.writeMethodNotAllowed(w, r, byMethod)
			return
		}
		caller, err := s.service.Authenticate(r.Context(), presented(r))
		if err != nil {
			s.writeError(w, r, err)
			return
		}
		noteCaller(r, caller)
		if err := admit(r, caller.Workspace); err != nil {
			s.writeError(w, r, err)
			return
		}
		if err := handle(w, r, caller); err != nil {
			s.writeError(w, r, err)
		}
	})
}

// presented is the secret that a request shows: x-api-key wins over a bearer
// token.
func presented(r *http.Request) string {
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return key
	}
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

func (s *server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if s.health != nil {
		if err := s.health(r.Context()); err != nil {
			s.writeError(w, r, &control.Fault{Kind: control.Unavailable, Message: "The server is not ready", Cause: err})
			return
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the client may be gone
}
