package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
)

func (r *rig) request(method, path string, body io.Reader, headers ...string) *http.Request {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return req
}

// TestOrderOfChecks: route, method, credentials, body.
func TestOrderOfChecks(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	tests := []struct {
		method, path, key string
		status            int
		kind, message     string
	}{
		{"GET", "/", "", 404, "not_found_error", "Not found"},
		{"GET", "/v1/nothing", "", 404, "not_found_error", "Not found"},
		{"GET", "/v1/nothing", key, 404, "not_found_error", "Not found"},
		{"GET", "/v1/nothing", "sk-sb-x", 404, "not_found", "Not found"},
		{"GET", "/v1/environments/", key, 404, "not_found_error", "Not found"},
		{"GET", "/v1//environments", key, 404, "not_found_error", "Not found"},
		{"GET", "/v1/../v1/environments", key, 404, "not_found_error", "Not found"},
		{"GET", "/v1/environments/a%2F..%2Fb", key, 404, "not_found_error", "Not found"},
		{"GET", "/v1/environments/a/b/c", key, 404, "not_found_error", "Not found"},
		{"GET", "/atoll/v1/templates", key, 404, "not_found_error", "Not found"}, // this server has no sandboxes
		{"PUT", "/v1/environments", "", 405, "invalid_request_error", "Method Not Allowed"},
		{"PATCH", "/v1/environments/x", key, 405, "invalid_request_error", "Method Not Allowed"},
		{"BREW", "/v1/environments", "sk-sb-x", 405, "invalid_request", "Method Not Allowed"},
		{"GET", "/v1/environments", "", 401, "authentication_error", "Authentication failed"},
		{"GET", "/v1/environments", "sk-wrong", 401, "authentication_error", "Authentication failed"},
		{"POST", "/v1/environments", "sk-wrong", 401, "authentication_error", "Authentication failed"},
		{"GET", "/v1/environments", "sk-sb-wrong", 401, "authentication_error", "Authentication failed"},
		{"POST", "/v1/environments", key, 400, "invalid_request_error", "Request body is required"},
	}
	for _, test := range tests {
		got := r.askAs(test.key, test.method, test.path, "")
		if got.status != test.status || got.str("error", "type") != test.kind || got.message() != test.message {
			t.Errorf("%s %s with %q: %d %s", test.method, test.path, test.key, got.status, got.text)
		}
	}
	if got := r.ask("PUT", "/v1/environments/x", ""); got.header.Get("Allow") != "DELETE, GET, HEAD, POST" {
		t.Errorf("Allow: %q", got.header.Get("Allow"))
	}
}

// TestClients: every combination of credentials and version headers that the
// two generations of clients send.
func TestClients(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	tests := []struct {
		name    string
		path    string
		headers []string
		status  int
	}{
		{"nothing but the key", "/v1/environments", []string{"X-Api-Key", key}, 200},
		{"first generation", "/v1/environments?beta=true", []string{"X-Api-Key", key, "anthropic-version", "2023-06-01", "anthropic-beta", "foo", "anthropic-beta", "managed-agents-2026-04-01"}, 200},
		{"second generation", "/v1/environments", []string{"Authorization", "Bearer " + key, "anthropic-version", "2026-10-21", "anthropic-beta", "foo,managed-agents-2026-04-01", "anthropic-workspace-id", "wrkspc_011CZkZaBF1tNoB5wlCeusgy"}, 200},
		{"scheme in any case", "/v1/environments", []string{"Authorization", "bearer  " + key}, 200},
		{"odd versions", "/v1/environments?x=y&x=z&%5B=", []string{"X-Api-Key", key, "anthropic-version", "tomorrow", "anthropic-beta", ",,"}, 200},
		{"old betas", "/v1/environments", []string{"X-Api-Key", key, "anthropic-beta", "environments-2025-11-01,managed-agents-2026-04-01"}, 200},
		{"both, x-api-key wins", "/v1/environments", []string{"X-Api-Key", key, "Authorization", "Bearer sk-wrong"}, 200},
		{"both, a bad x-api-key wins", "/v1/environments", []string{"X-Api-Key", "sk-wrong", "Authorization", "Bearer " + key}, 401},
		{"basic", "/v1/environments", []string{"Authorization", "Basic " + key}, 401},
		{"no scheme", "/v1/environments", []string{"Authorization", key}, 401},
		{"empty", "/v1/environments", []string{"Authorization", "Bearer ", "X-Api-Key", ""}, 401},
		{"none", "/v1/environments", nil, 401},
	}
	for _, test := range tests {
		if got := r.do(r.request("GET", test.path, nil, test.headers...)); got.status != test.status {
			t.Errorf("%s: %d %s", test.name, got.status, got.text)
		}
	}
}

// TestBodies: what a body may be before its fields count (issue: bad input).
func TestBodies(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	good := `{"name":"x"}`
	post := func(contentType string, body io.Reader) answer {
		headers := []string{"X-Api-Key", key}
		if contentType != "" {
			headers = append(headers, "Content-Type", contentType)
		}
		return r.do(r.request("POST", "/v1/environments", body, headers...))
	}
	for _, contentType := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/jsonx", ";;"} {
		if got := post(contentType, strings.NewReader(good)); got.status != 400 || got.message() != "content-type: Input should be 'application/json'" {
			t.Errorf("%q: %d %s", contentType, got.status, got.text)
		}
	}
	// Unknown length, so that the limit is met while reading.
	tooLarge := io.MultiReader(strings.NewReader(`{"name":"`), io.LimitReader(forever('x'), 33<<20))
	if got := post("application/json", tooLarge); got.status != 413 || got.str("error", "type") != "invalid_request_error" || got.message() != "Request body is larger than 4194304 bytes" {
		t.Errorf("too large: %d %s", got.status, got.text)
	}
	many := `{"name":"x","description":[` + strings.Repeat("0,", 300_000) + `0]}`
	if got := post("application/json", strings.NewReader(many)); got.status != 400 || got.message() != "Request body has more than 200000 values" {
		t.Errorf("many values: %d %s", got.status, got.text)
	}
	if got := post("application/json; charset=utf-8", strings.NewReader("\n "+good+"\n")); got.status != 200 {
		t.Errorf("a good one: %d %s", got.status, got.text)
	}
	// A GET that carries a body is answered all the same.
	if got := r.ask("GET", "/v1/environments", "nonsense"); got.status != 200 {
		t.Errorf("GET with a body: %d %s", got.status, got.text)
	}
}

// forever is a reader of one byte.
type forever byte

func (f forever) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(f)
	}
	return len(p), nil
}

// TestKeys: a new key works at once, a revoked one stops at once.
func TestKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	ctx := context.Background()
	secret, made, err := r.service.CreateKey(ctx, r.workspace, "ci", control.KeyAPI, false)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^sk-atoll-[0-9A-Za-z]{32}$`).MatchString(secret) || !strings.HasSuffix(secret, made.Hint) {
		t.Errorf("secret %q, hint %q", secret, made.Hint)
	}
	if got := r.askAs(secret, "GET", "/v1/environments", ""); got.status != 200 {
		t.Errorf("%d %s", got.status, got.text)
	}
	if err := r.service.RevokeKey(ctx, r.workspace, made.ID); err != nil {
		t.Fatal(err)
	}
	if got := r.askAs(secret, "GET", "/v1/environments", ""); got.status != 401 {
		t.Errorf("revoked: %d %s", got.status, got.text)
	}
	keys, err := r.service.ListKeys(ctx, r.workspace)
	if err != nil || len(keys) != 2 { // and the default one
		t.Errorf("%d keys, %v", len(keys), err)
	}
	if _, err := r.service.EnsureDefault(ctx, "", func(string) error { return errors.New("a second key") }); err != nil {
		t.Errorf("second start: %v", err)
	}
	if err := r.service.RevokeKey(ctx, r.workspace, "apikey_x"); err == nil {
		t.Error("an unknown key can be revoked")
	}
}

// TestObserved: the request id, the log line and the metrics; no secret and no
// body in any of them.
func TestObserved(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	got := r.ask("POST", "/v1/environments", `{"name":"hush-name","oops":1}`)
	id := got.header.Get("Request-Id")
	if id != got.str("request_id") || !regexp.MustCompile(`^req_01[0-9A-Za-z]{22}$`).MatchString(id) {
		t.Errorf("request id %q in %s", id, got.text)
	}
	ok := r.ask("GET", "/v1/environments/env_hush?page=hush-query", "")
	r.askAs("sk-hush-key", "GET", "/v1/environments", "")
	r.ask("GET", "/hush-path", "")
	log := r.log.String()
	for _, want := range []string{id, ok.header.Get("Request-Id"), `"route":"/v1/environments/{id}"`, `"status":404`, `"status":401`, `"route":"other"`, `"workspace_id":"` + r.workspace} {
		if !strings.Contains(log, want) {
			t.Errorf("%s is not in the log:\n%s", want, log)
		}
	}
	if strings.Count(log, "\n") != 4 || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("log:\n%s", log)
	}
	for _, secret := range []string{"hush-name", "hush-key", "hush-query", "hush-path", key} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
	metrics := r.do(r.request("GET", "/metrics", nil))
	for _, want := range []string{`atoll_http_requests_total{method="POST",route="/v1/environments",status="400"} 1`, `atoll_http_requests_total{method="GET",route="other",status="404"} 1`} {
		if !strings.Contains(metrics.text, want) {
			t.Errorf("%s is not in the metrics:\n%s", want, metrics.text)
		}
	}
	if health := r.do(r.request("GET", "/healthz", nil)); health.status != 200 || health.text != "ok\n" {
		t.Errorf("health: %d %q", health.status, health.text)
	}
}

// TestStoreFails: what is no fault is a 500 that tells nothing.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	got := r.ask("GET", "/v1/environments", "")
	if got.status != 500 || got.str("error", "type") != "api_error" || got.message() != "Internal server error" {
		t.Errorf("%d %s", got.status, got.text)
	}
	if !strings.Contains(r.log.String(), `"level":"ERROR"`) || !bytes.Contains([]byte(r.log.String()), []byte(got.str("request_id"))) {
		t.Errorf("log: %s", r.log.String())
	}
}
