package modeltest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// Server answers POST /v1/messages. Its methods may be called at the same time.
type Server struct {
	// Key is what clients must show, as a bearer token or in x-api-key; empty
	// lets everybody in.
	Key string
	// Rules answer messages without a script, the first that fits.
	Rules []Rule
	// NoSystem refuses conversations with system messages, as older models do.
	NoSystem bool
	// NoImage refuses conversations with images, as some models do, and as the API
	// does with an image that it cannot read.
	NoImage bool

	mu       sync.Mutex // guards what follows
	requests []Request
	problems []string
	failed   map[string]int // request hash → how often it was made to fail
	total    int
}

// Request is a request that the server got.
type Request struct {
	// Model is the model that the request names.
	Model string
	// Body is the request as it came.
	Body []byte
	// Header holds the request's header fields.
	Header http.Header
}

// maxKept bounds the requests that are kept for tests to look at.
const maxKept = 2000

// Requests are the last 2,000 requests, oldest first, whether they were valid
// or not.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Total counts the requests.
func (s *Server) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Problems says what was wrong with the requests that were refused. A test that
// expects none fails on any.
func (s *Server) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.problems...)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v1/messages" || r.Method != http.MethodPost {
		writeError(w, http.StatusNotFound, "not_found_error", "Not found")
		return
	}
	if s.Key != "" && r.Header.Get("X-Api-Key") != s.Key && r.Header.Get("Authorization") != "Bearer "+s.Key {
		writeError(w, http.StatusUnauthorized, "authentication_error", "invalid x-api-key")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	if err != nil {
		return // the client has left
	}
	s.keep(r, body)
	var req request
	if err := json.Unmarshal(body, &req); err != nil {
		s.refuse(w, fmt.Errorf("body: %w", err))
		return
	}
	if err := errors.Join(checkBody(body), req.validate(), checkHeaders(r)); err != nil {
		s.refuse(w, err)
		return
	}
	if s.NoSystem && req.hasSystemMessage() {
		writeError(w, http.StatusBadRequest, "invalid_request_error", "role 'system' is not supported on this model")
		return
	}
	if s.NoImage && req.hasImage() {
		writeError(w, http.StatusBadRequest, "invalid_request_error", "Could not process image")
		return
	}
	reply, step, err := choose(req.Messages, s.Rules)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if reply.InputTokens == 0 {
		reply.InputTokens = len(body) / 4
	}
	if f := reply.Fail; f != nil && len(body) > f.OverBytes && s.fails(body, f.Times) {
		s.fail(w, r, reply, f)
		return
	}
	// The ids are derived from the request, so that a repeated one is answered alike.
	sum := sha256.Sum256(body)
	st := &stream{w: w, id: fmt.Sprintf("%s%02d", hex.EncodeToString(sum[:8]), max(step, 0)), model: req.Model}
	if !req.Stream {
		st.whole(reply)
		return
	}
	st.play(r.Context(), reply)
}

func checkHeaders(r *http.Request) error {
	if r.Header.Get("Anthropic-Version") == "" {
		return errors.New("anthropic-version: header is required")
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return errors.New("content-type: must be application/json")
	}
	return nil
}

func (s *Server) keep(r *http.Request, body []byte) {
	var head struct {
		Model string `json:"model"`
	}
	_ = json.Unmarshal(body, &head) // reported by the caller
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	if s.requests = append(s.requests, Request{head.Model, body, r.Header.Clone()}); len(s.requests) > maxKept {
		s.requests = s.requests[len(s.requests)-maxKept:]
	}
}

func (s *Server) refuse(w http.ResponseWriter, err error) {
	s.mu.Lock()
	s.problems = append(s.problems, err.Error())
	s.mu.Unlock()
	writeError(w, http.StatusBadRequest, "invalid_request_error", err.Error())
}

// fails counts how often this very request was made to fail.
func (s *Server) fails(body []byte, times int) bool {
	sum := sha256.Sum256(body)
	id := string(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = map[string]int{}
	}
	s.failed[id]++
	return times == 0 || s.failed[id] <= times
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, reply Reply, f *Failure) {
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	if f.Status != http.StatusOK {
		kind := map[int]string{400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
			404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}[f.Status]
		if kind == "" {
			kind = "api_error"
		}
		message := f.Message
		if message == "" {
			message = kind
		}
		writeError(w, f.Status, kind, message)
		return
	}
	st := &stream{w: w, id: "broken", model: "broken"}
	st.begin(reply)
	st.frame("content_block_start", map[string]any{"index": 0, "content_block": map[string]any{"type": "text", "text": ""}})
	st.frame("content_block_delta", map[string]any{"index": 0, "delta": map[string]any{"type": "text_delta", "text": "half an ans"}})
	switch f.Stream {
	case "error":
		st.frame("error", map[string]any{"error": map[string]any{"type": "overloaded_error", "message": "Overloaded"}})
	case "malformed":
		_, _ = io.WriteString(w, "event: content_block_delta\ndata: {\"type\":\n\n")
	}
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler) // the connection is cut
}

func writeError(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	text, _ := json.Marshal(map[string]any{ // strings only
		"type": "error", "error": map[string]any{"type": kind, "message": message}, "request_id": nil,
	})
	_, _ = w.Write(text) // the client may be gone
}
