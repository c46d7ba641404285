package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/control"
)

// endpoint is a model endpoint that lists models.
type endpoint struct {
	mu     sync.Mutex
	asked  []string                                 // what came, path and query
	answer func(http.ResponseWriter, *http.Request) // under mu
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	e.asked = append(e.asked, r.URL.String())
	answer := e.answer
	e.mu.Unlock()
	answer(w, r)
}

func (e *endpoint) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	asked := e.asked
	e.asked = nil
	return asked
}

// listing starts an endpoint and a client of it.
func listing(t *testing.T, names map[string]string, answer func(http.ResponseWriter, *http.Request)) (*endpoint, *agent.Client) {
	t.Helper()
	e := &endpoint{answer: answer}
	web := httptest.NewServer(e)
	t.Cleanup(web.Close)
	client, err := agent.NewClient(agent.ModelConfig{BaseURL: web.URL, Key: "sk-endpoint", Names: names})
	if err != nil {
		t.Fatal(err)
	}
	return e, client
}

func say(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) }
}

func fail(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, `{"type":"error","error":{"type":"api_error","message":"hush-words"}}`)
	}
}

// TestModels: the endpoint's models appear under the names that agents send.
func TestModels(t *testing.T) {
	t.Parallel()
	e, client := listing(t, map[string]string{"big": "vendor/large", "also-big": "vendor/large", "shadowed": "vendor/small", "unlisted": "vendor/hidden"},
		func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer sk-endpoint" {
				t.Errorf("the key is %q", r.Header.Get("Authorization"))
			}
			if r.URL.Query().Get("after_id") == "" {
				fmt.Fprint(w, `{"data":[{"type":"model","id":"vendor/large","display_name":"Large","created_at":"2026-09-21T00:00:00Z","max_tokens":64000,"line":"opus","lifecycle":"deprecated"},`+
					`{"id":"shadowed","display_name":"never"}],"has_more":true,"last_id":"shadowed"}`)
				return
			}
			fmt.Fprint(w, `{"data":[{"id":"vendor/small","object":"model","created":1700000000},{"no":"id"},7],"has_more":false}`)
		})
	got, err := client.Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, m := range got {
		lines = append(lines, strings.Join([]string{m.ID, m.Type, m.DisplayName, m.CreatedAt.Format(time.RFC3339), m.Lifecycle}, " "))
	}
	want := []string{
		"also-big model Large 2026-09-21T00:00:00Z deprecated", "big model Large 2026-09-21T00:00:00Z deprecated", "vendor/large model Large 2026-09-21T00:00:00Z deprecated",
		"shadowed model vendor/small 2023-11-14T22:13:20Z active", "vendor/small model vendor/small 2023-11-14T22:13:20Z active",
		"unlisted model unlisted 1970-01-01T00:00:00Z active",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got[0].MaxTokens == nil || *got[0].MaxTokens != 64000 || got[0].Line == nil || *got[0].Line != "opus" || got[3].MaxTokens != nil {
		t.Errorf("details: %+v", got)
	}
	asked := e.take()
	if len(asked) != 2 || !strings.Contains(asked[1], "after_id=shadowed") || !strings.Contains(asked[0], "limit=1000") {
		t.Errorf("the endpoint was asked %v", asked)
	}
	if m, err := client.Model(t.Context(), "big"); err != nil || m.ID != "big" || m.DisplayName != "Large" {
		t.Errorf("big: %+v, %v", m, err)
	}
	if asked := e.take(); len(asked) != 0 {
		t.Errorf("the endpoint was asked again within a minute: %v", asked)
	}
}

// TestModelByAlias: a name that is not listed is looked up at the endpoint, which
// may know it as an alias.
func TestModelByAlias(t *testing.T) {
	t.Parallel()
	e, client := listing(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/v1/models":
			fmt.Fprint(w, `{"data":[]}`)
		case "/v1/models/a%2Flatest":
			fmt.Fprint(w, `{"id":"a/4","display_name":"A 4"}`)
		case "/v1/models/odd":
			fmt.Fprint(w, `[]`)
		default:
			fail(404)(w, r)
		}
	})
	if m, err := client.Model(t.Context(), "a/latest"); err != nil || m.ID != "a/4" {
		t.Errorf("an alias: %+v, %v", m, err)
	}
	for id, kind := range map[string]control.Kind{
		"none": control.NotFound, "..": control.NotFound, ".": control.NotFound, "odd": control.Unavailable, strings.Repeat("x", 5000): control.NotFound, "../messages": control.NotFound,
	} {
		if _, err := client.Model(t.Context(), id); !isFault(err, kind) {
			t.Errorf("%.20q: %v, want %s", id, err, kind)
		}
	}
	for _, asked := range e.take() {
		if !strings.HasPrefix(asked, "/v1/models") || strings.Contains(asked, "messages") && !strings.Contains(asked, "%2F") {
			t.Errorf("the endpoint was asked for %s", asked)
		}
	}
}

func isFault(err error, kind control.Kind) bool {
	fault, ok := control.AsFault(err)
	return ok && fault.Kind == kind
}

// TestModelErrors: what goes wrong at the endpoint is told in words of this
// server, and is never taken for the client's own key or request.
func TestModelErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		kind   control.Kind
		words  string
	}{
		"no list":        {fail(404), control.NotFound, "does not list its models"},
		"no method":      {fail(405), control.NotFound, "does not list its models"},
		"the key":        {fail(401), control.Unavailable, "refuses the server's key"},
		"no permission":  {fail(403), control.Unavailable, "refuses the server's key"},
		"too often":      {fail(429), control.RateLimited, "asked too often"},
		"overloaded":     {fail(529), control.Unavailable, "status 529"},
		"broken":         {fail(500), control.Unavailable, "status 500"},
		"bad request":    {fail(400), control.Unavailable, "status 400"},
		"no JSON":        {say("<html>"), control.Unavailable, "cannot be asked"},
		"no list at all": {say(`{"data":7}`), control.Unavailable, "cannot be asked"},
		"cut off": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"data":[`)
		}, control.Unavailable, "cannot be asked"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusTemporaryRedirect)
		}, control.Unavailable, "cannot be asked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, client := listing(t, nil, test.answer)
			for range 3 {
				_, err := client.Models(t.Context())
				fault, ok := control.AsFault(err)
				if !ok || fault.Kind != test.kind || !strings.Contains(fault.Message, test.words) || strings.Contains(fault.Message, "hush") || fault.Cause == nil {
					t.Fatalf("%v, want %s with %q", err, test.kind, test.words)
				}
			}
			if n := len(e.take()); n > 2 { // an answer of 400 is tried without the stages
				t.Errorf("the endpoint was asked %d times at once", n)
			}
		})
	}
}

// TestModelsWithoutList: an endpoint that lists nothing still has the models of
// the map of names, and one that does not know stages lists what it has.
func TestModelsWithoutList(t *testing.T) {
	t.Parallel()
	_, client := listing(t, map[string]string{"b": "x", "a": "y"}, fail(404))
	got, err := client.Models(t.Context())
	if err != nil || len(got) != 2 || got[0].ID != "a" || got[1].ID != "b" {
		t.Errorf("%+v, %v", got, err)
	}
	_, client = listing(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("lifecycle[]") {
			fail(400)(w, r)
			return
		}
		fmt.Fprint(w, `{"data":[{"id":"m"}],"has_more":false}`)
	})
	if got, err := client.Models(t.Context()); err != nil || len(got) != 1 || got[0].ID != "m" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestModelsOneQuestion: who asks while the endpoint is being asked waits for the
// same answer, and one who leaves spoils it for nobody.
func TestModelsOneQuestion(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	e, client := listing(t, nil, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-release
		fmt.Fprint(w, `{"data":[{"id":"m"}]}`)
	})
	ctx, leave := context.WithCancel(t.Context())
	first, others := make(chan error), make(chan error)
	go func() { _, err := client.Models(ctx); first <- err }()
	<-asked
	for range 5 {
		go func() { _, err := client.Models(t.Context()); others <- err }()
	}
	leave()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Models(gone); err == nil {
		t.Error("one who has left waits")
	}
	close(release)
	for range 5 {
		if err := <-others; err != nil {
			t.Error(err)
		}
	}
	<-first
	if n := len(e.take()); n != 1 {
		t.Errorf("the endpoint was asked %d times", n)
	}
}

// FuzzModels: whatever an endpoint answers, what is listed is as the API has it.
func FuzzModels(f *testing.F) {
	for _, seed := range []string{
		`{"data":[{"id":"m","created_at":"2026-01-01T00:00:00Z","created":-1,"max_tokens":1.5,"lifecycle":"odd","line":"odd","capabilities":{}}]}`,
		`{"data":[{"id":"\ud800"},{"id":""},null,[]],"has_more":true,"last_id":"m"}`, `{"data":null,"has_more":"x"}`, `[]`, `{"data":[{"id":"a"},{"id":"a"}]}`,
	} {
		f.Add(seed)
	}
	var mu sync.Mutex
	var text string
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprint(w, text)
	}))
	f.Cleanup(web.Close)
	f.Fuzz(func(t *testing.T, answer string) {
		mu.Lock()
		text = answer
		mu.Unlock()
		client, err := agent.NewClient(agent.ModelConfig{BaseURL: web.URL, Names: map[string]string{"name": "m"}})
		if err != nil {
			t.Fatal(err)
		}
		models, err := client.Models(t.Context())
		if err != nil {
			if _, ok := control.AsFault(err); !ok {
				t.Fatalf("%q: %v is no fault", answer, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, m := range models {
			if m.ID == "" || seen[m.ID] || m.Type != "model" || m.DisplayName == "" || m.Lifecycle != api.ModelActive && m.Lifecycle != api.ModelDeprecated && m.Lifecycle != api.ModelRetired {
				t.Fatalf("%q lists %+v", answer, m)
			}
			if _, err := json.Marshal(m); err != nil {
				t.Fatal(err)
			}
			seen[m.ID] = true
		}
	})
}
