package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/atoll-run/atoll/internal/agent"
	"github.com/atoll-run/atoll/internal/agent/toolset"
)

// ModelConfig says where the models of agents are: any endpoint that speaks the
// Messages API. The key is ATOLL_MODEL_KEY, or in a file; it stands in no
// configuration, no log and no sandbox.
type ModelConfig struct {
	// BaseURL of the endpoint, without /v1/messages. Empty: no agent runs.
	// ATOLL_MODEL_URL wins over it.
	BaseURL string `yaml:"base_url"`
	// KeyFile holds the key, where ATOLL_MODEL_KEY does not.
	KeyFile string `yaml:"key_file"`
	// KeyHeader is authorization (as a bearer token) or x-api-key.
	KeyHeader string `yaml:"key_header"`
	// Headers are added to each request.
	Headers map[string]string `yaml:"headers"`
	// Names maps the model ids of agents to the endpoint's.
	Names map[string]string `yaml:"names"`
	// MaxTokens of one reply.
	MaxTokens int `yaml:"max_tokens"`
	// ContextWindow of the models, in tokens: beyond it a conversation is compacted.
	ContextWindow int `yaml:"context_window"`
	// Timeout of one request.
	Timeout Duration `yaml:"timeout"`
	// Thinking asks for adaptive thinking.
	Thinking bool `yaml:"thinking"`

	key string // from the environment or the file
}

// AgentConfig bounds what one turn of an agent may do.
type AgentConfig struct {
	// MaxRequests is how many model requests a turn may make.
	MaxRequests int `yaml:"max_requests"`
	// MaxRetries is how often a failed model request is made again.
	MaxRetries int `yaml:"max_retries"`
	// WebSearch is what the tool web_search asks. Without a URL the tool is not
	// offered.
	WebSearch WebSearchConfig `yaml:"web_search"`
}

// WebSearchConfig is a search service that answers JSON.
type WebSearchConfig struct {
	// URL of a search, with {query} and, if it takes them, {count}, {country},
	// {region}, {city}, {timezone} and {key} in its query part.
	URL string `yaml:"url"`
	// KeyFile holds the service's key, where ATOLL_SEARCH_KEY does not. It goes
	// where the URL has {key}, else into KeyHeader.
	KeyFile string `yaml:"key_file"`
	// KeyHeader is the header of the key; authorization, as a bearer token, if
	// it is empty.
	KeyHeader string `yaml:"key_header"`
	// Headers of each request.
	Headers map[string]string `yaml:"headers"`
	// Results, Title, Link and Snippet say where in the reply they lie.
	Results string `yaml:"results"`
	// Title is the member of a result that holds its title.
	Title string `yaml:"title"`
	// Link is the member of a result that holds its address.
	Link string `yaml:"link"`
	// Snippet is the member of a result that holds its text.
	Snippet string `yaml:"snippet"`
	// Count is how many results there are at most.
	Count int `yaml:"count"`
	// Timeout of one search.
	Timeout Duration `yaml:"timeout"`

	key string // from the environment or the file
}

// search is the service as the tools take it; nil when there is none.
func (w *WebSearchConfig) search() *toolset.Search {
	if w.URL == "" {
		return nil
	}
	return &toolset.Search{URL: w.URL, Key: w.key, KeyHeader: w.KeyHeader, Headers: w.Headers, Results: w.Results, Title: w.Title, Link: w.Link, Snippet: w.Snippet,
		Count: w.Count, Timeout: time.Duration(w.Timeout)}
}

// tools makes the tools of agents. nil roots are the host's.
func (a *AgentConfig) tools(roots *x509.CertPool, log *slog.Logger) (*toolset.Toolset, error) {
	set, err := toolset.New(toolset.Config{Search: a.WebSearch.search(), Roots: roots, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("agent.web_search: %w", err)
	}
	return set, nil
}

// resolve takes in what the environment says.
func (m *ModelConfig) resolve(getenv func(string) string) error {
	if text := getenv("ATOLL_MODEL_URL"); text != "" {
		m.BaseURL = text
	}
	var err error
	m.key, err = keyOf("model.key_file", m.KeyFile, getenv("ATOLL_MODEL_KEY"))
	return err
}

// resolve takes in what the environment says.
func (w *WebSearchConfig) resolve(getenv func(string) string) error {
	var err error
	w.key, err = keyOf("agent.web_search.key_file", w.KeyFile, getenv("ATOLL_SEARCH_KEY"))
	return err
}

// keyOf is a key that a variable gives, or a file, or nothing.
func keyOf(field, file, variable string) (string, error) {
	if key := strings.TrimSpace(variable); key != "" || file == "" {
		return key, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	key := strings.TrimSpace(string(content))
	if key == "" {
		return "", fmt.Errorf("%s: %s is empty", field, file)
	}
	return key, nil
}

func (m *ModelConfig) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("model."+format, args...)) }
	if m.BaseURL != "" {
		u, err := url.Parse(m.BaseURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			bad("base_url: %q is not an address like https://models.example.com", redacted(u, m.BaseURL))
		}
	}
	if !slices.Contains([]string{"", "authorization", "x-api-key"}, m.KeyHeader) {
		bad("key_header: %q is not authorization or x-api-key", m.KeyHeader)
	}
	if !httpguts.ValidHeaderFieldValue(m.key) {
		bad("key: the key has characters that no header takes")
	}
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(m.Headers[name]) {
			bad("headers: %q is not a header", name)
		}
		if k := http.CanonicalHeaderKey(name); m.key != "" && (k == "Authorization" || k == "X-Api-Key") {
			bad("headers: %s is the key's", name)
		}
	}
	if m.MaxTokens < 0 || m.ContextWindow < 0 {
		bad("max_tokens and context_window: not negative")
	}
	if m.BaseURL != "" && len(errs) == 0 {
		_, err := m.client()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// redacted is an address as it may be repeated.
func redacted(u *url.URL, text string) string {
	if u == nil || u.User != nil || strings.Contains(text, "@") {
		return "…"
	}
	return text
}

// client is what makes model requests; nil when no endpoint is configured.
func (m *ModelConfig) client() (*agent.Client, error) {
	if m.BaseURL == "" {
		return nil, nil
	}
	return agent.NewClient(agent.ModelConfig{
		BaseURL: m.BaseURL, Key: m.key, KeyHeader: m.KeyHeader == "x-api-key", Headers: m.Headers, Names: m.Names,
		MaxTokens: m.MaxTokens, ContextWindow: m.ContextWindow, Timeout: time.Duration(m.Timeout), Thinking: m.Thinking,
	})
}

func (a *AgentConfig) validate() error {
	var errs []error
	if a.MaxRequests < 0 {
		errs = append(errs, fmt.Errorf("agent.max_requests: %d is negative", a.MaxRequests))
	}
	if a.MaxRetries < 0 {
		errs = append(errs, fmt.Errorf("agent.max_retries: %d is negative", a.MaxRetries))
	}
	if a.WebSearch.Count < 0 {
		errs = append(errs, fmt.Errorf("agent.web_search.count: %d is negative", a.WebSearch.Count))
	}
	_, err := a.tools(nil, nil)
	errs = append(errs, err)
	return errors.Join(errs...)
}
