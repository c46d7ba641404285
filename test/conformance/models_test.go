package conformance

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	anthropic1 "github.com/anthropics/anthropic-sdk-go"
	option1 "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"

	"github.com/atoll-run/atoll/internal/agent"
)

// models are those of a scripted endpoint: two that it lists and an alias, under
// the server's own names for them.
func models(t *testing.T) *agent.Client {
	t.Helper()
	opus := `{"type":"model","id":"vendor/opus","display_name":"Opus","created_at":"2026-09-21T00:00:00Z","max_tokens":64000,"max_input_tokens":200000,"line":"opus","lifecycle":"active","deprecated_at":null,"retires_at":null}`
	haiku := `{"id":"vendor/haiku","object":"model","created":1700000000,"owned_by":"vendor"}`
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/v1/models":
			fmt.Fprintf(w, `{"data":[%s,%s],"has_more":false,"first_id":"vendor/opus","last_id":"vendor/haiku"}`, opus, haiku)
		case "/v1/models/haiku-latest":
			fmt.Fprint(w, haiku)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"type":"error","error":{"type":"not_found_error","message":"model not found"}}`)
		}
	}))
	t.Cleanup(web.Close)
	client, err := agent.NewClient(agent.ModelConfig{BaseURL: web.URL, Names: map[string]string{"opus-here": "vendor/opus", "unlisted": "vendor/other"}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// TestGoClientModels lists and reads models with the Go client of each generation.
func TestGoClientModels(t *testing.T) {
	t.Parallel()
	s := start(t)
	want := []string{"opus-here", "vendor/opus", "vendor/haiku", "unlisted"}
	var got []string
	client := anthropic.NewClient(option.WithBaseURL(s.url), option.WithAPIKey(apiKey))
	pager := client.Models.ListAutoPaging(t.Context(), anthropic.ModelListParams{Limit: anthropic.Int(1)})
	for pager.Next() {
		got = append(got, pager.Current().ID)
	}
	s.ok(pager.Err())
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	m, err := client.Models.Get(t.Context(), "vendor/opus", anthropic.ModelGetParams{})
	s.ok(err)
	if m.ID != "vendor/opus" || m.MaxTokens != 64000 {
		t.Errorf("got %s", m.RawJSON())
	}
	got = nil
	first := anthropic1.NewClient(option1.WithBaseURL(s.url), option1.WithAPIKey(apiKey))
	pager1 := first.Beta.Models.ListAutoPaging(t.Context(), anthropic1.BetaModelListParams{Limit: anthropic1.Int(3)})
	for pager1.Next() {
		got = append(got, pager1.Current().ID)
	}
	s.ok(pager1.Err())
	if !slices.Equal(got, want) {
		t.Errorf("the first generation got %v", got)
	}
	m1, err := first.Models.Get(t.Context(), "haiku-latest", anthropic1.ModelGetParams{})
	s.ok(err)
	if m1.ID != "vendor/haiku" {
		t.Errorf("got %s", m1.RawJSON())
	}
}
