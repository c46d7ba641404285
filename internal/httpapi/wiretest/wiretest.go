// Package wiretest holds replies to the official OpenAPI document, which is
// inside the Go SDK's module. Its transport goes into the client of a test, so
// that each reply of the test is checked, errors included. It is for tests only.
package wiretest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// sdk is the module that carries the document.
const sdk = "github.com/anthropics/anthropic-sdk-go/v2"

// sandBaseTypes are the types of errors in SandBase's dialect; its replies are
// checked by hand, because the document does not know them.
var sandBaseTypes = []string{
	"invalid_request", "authentication_error", "not_found", "conflict",
	"permission_error", "rate_limit_error", "overloaded_error", "timeout_error", "api_error",
}

// Document is the OpenAPI document. Its methods may be called at the same time.
type Document struct {
	raw   map[string]any
	paths map[string]any

	mu       sync.Mutex
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // JSON pointer → compiled, under mu
}

var load = sync.OnceValues(read)

// Load reads the document, once per process.
func Load(t testing.TB) *Document {
	t.Helper()
	d, err := load()
	if err != nil {
		t.Fatalf("loading the OpenAPI document: %v", err)
	}
	return d
}

func read() (*Document, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", sdk).Output()
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", sdk, err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "scripts", "mock-spec.json.gz"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(text)
	if err != nil {
		return nil, err
	}
	raw, _ := doc.(map[string]any)
	paths, ok := raw["paths"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the document has no paths")
	}
	d := &Document{raw: raw, paths: paths, compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	d.compiler.UseRegexpEngine(pattern)
	return d, d.compiler.AddResource("openapi.json", doc)
}

// unicodeEscape is how the document's patterns write a character that Go's
// expressions write as \x{…}.
var unicodeEscape = regexp.MustCompile(`\\u([0-9a-fA-F]{4})`)

// pattern compiles a pattern of the document.
func pattern(text string) (jsonschema.Regexp, error) {
	return regexp.Compile(unicodeEscape.ReplaceAllString(text, `\x{$1}`))
}

// find returns the key of the path that a request path matches, preferring the
// beta one.
func (d *Document) find(path string) (string, bool) {
	asked := strings.Split(path, "/")
	found := ""
	for key := range d.paths {
		template, query, _ := strings.Cut(key, "?")
		if !matches(strings.Split(template, "/"), asked) {
			continue
		}
		if query == "beta=true" {
			return key, true
		}
		found = key
	}
	return found, found != ""
}

func matches(template, asked []string) bool {
	return slices.EqualFunc(template, asked, func(t, a string) bool {
		return t == a || strings.HasPrefix(t, "{") && a != ""
	})
}

func (d *Document) schema(pointer string) (*jsonschema.Schema, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s, ok := d.schemas[pointer]; ok {
		return s, nil
	}
	s, err := d.compiler.Compile("openapi.json#" + pointer)
	if err == nil {
		d.schemas[pointer] = s
	}
	return s, err
}

// escape makes a key part of a JSON pointer in a URL fragment.
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1", "?", "%3F", "{", "%7B", "}", "%7D").Replace(key)
}

func (d *Document) get(path ...string) any {
	var at any = d.raw
	for _, name := range path {
		m, _ := at.(map[string]any)
		at = m[name]
	}
	return at
}

// CheckReply validates the body of a reply. A path that the document does not
// have and a status that it does not describe are held to the shape of errors only.
func (d *Document) CheckReply(method, path string, status int, body []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if status >= 400 {
		if err := checkEnvelope(body); err != nil {
			return err
		}
	}
	key, ok := d.find(path)
	method = strings.ToLower(method)
	code := fmt.Sprint(status)
	if !ok || d.get("paths", key, method, "responses", code, "content", "application/json", "schema") == nil {
		return nil
	}
	s, err := d.schema("/paths/" + escape(key) + "/" + method + "/responses/" + code + "/content/application~1json/schema")
	if err != nil {
		return fmt.Errorf("compiling the schema: %w", err)
	}
	return s.Validate(value)
}

// CheckRequest validates the body of a request, for tests that send what must
// be valid. A path without a schema is an error.
func (d *Document) CheckRequest(method, path string, body []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	key, ok := d.find(path)
	if !ok {
		return fmt.Errorf("%s is not in the document", path)
	}
	s, err := d.schema("/paths/" + escape(key) + "/" + strings.ToLower(method) + "/requestBody/content/application~1json/schema")
	if err != nil {
		return fmt.Errorf("compiling the schema: %w", err)
	}
	return s.Validate(value)
}

type envelope struct {
	Type  string `json:"type"`
	Error struct {
		Type    string         `json:"type"`
		Message string         `json:"message"`
		Details map[string]any `json:"details"`
	} `json:"error"`
	RequestID string `json:"request_id"`
}

func checkEnvelope(body []byte) error {
	var e envelope
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return fmt.Errorf("error body: %w", err)
	}
	if e.Type != "error" || e.Error.Type == "" || e.Error.Message == "" || !strings.HasPrefix(e.RequestID, "req_") {
		return fmt.Errorf("error body is not whole: %s", body)
	}
	return nil
}

// transport checks each JSON reply and each frame of a stream that passes.
type transport struct {
	t    testing.TB
	doc  *Document
	next http.RoundTripper
}

// Transport returns a transport that fails the test on each reply that is not
// as the document says. Next nil means a transport of its own.
func Transport(t testing.TB, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	if next == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		t.Cleanup(own.CloseIdleConnections)
		next = own
	}
	return &transport{t: t, doc: Load(t), next: next}
}

// RoundTrip implements http.RoundTripper.
func (tr *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	sandBase := strings.HasPrefix(r.Header.Get("X-Api-Key"), "sk-sb-") ||
		r.Header.Get("X-Api-Key") == "" && strings.HasPrefix(r.Header.Get("Authorization"), "Bearer sk-sb-")
	resp, err := tr.next.RoundTrip(r)
	if err == nil && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, tr.doc.Frames(tr.t, r.URL.Path)), resp.Body}
	}
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // all of it was read
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if err := tr.check(r, resp, body, sandBase); err != nil {
		tr.t.Errorf("%s %s: reply %d is not as the document says: %v\n%s", r.Method, r.URL.Path, resp.StatusCode, err, body)
	}
	return resp, nil
}

func (tr *transport) check(r *http.Request, resp *http.Response, body []byte, sandBase bool) error {
	if resp.StatusCode >= 400 {
		var e envelope
		_ = json.Unmarshal(body, &e) // checkEnvelope says what is wrong with it
		if id := resp.Header.Get("Request-Id"); id != e.RequestID {
			return fmt.Errorf("header request-id %q, body %q", id, e.RequestID)
		}
		if sandBase {
			if !slices.Contains(sandBaseTypes, e.Error.Type) {
				return fmt.Errorf("%q is not a SandBase error type", e.Error.Type)
			}
			return checkEnvelope(body)
		}
	}
	return tr.doc.CheckReply(r.Method, r.URL.Path, resp.StatusCode, body)
}
