package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/internal/agent/modeltest"
)

// TestAgentReadsTheWeb has an agent fetch and search under an environment's
// limited networking: a TLS site whose authority the host knows, a host that is
// not allowed, a redirect there, and a search endpoint with a key.
func TestAgentReadsTheWeb(t *testing.T) {
	site := newSite(t)
	site.hosts["away"] = http.RedirectHandler("https://refused.example.com/", http.StatusFound)
	authority := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, site.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", authority)
	const searchKey = "sk-search-e2e-1357924680"
	t.Setenv("ATOLL_SEARCH_KEY", searchKey)
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Key") != searchKey {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `[{"title":"One","url":"https://www.example.com/%s"},{"title":"Two","url":"https://refused.example.com/"}]`, r.FormValue("q"))
	}))
	t.Cleanup(engine.Close)
	s, _ := newAgentServer(t, site.config()+"agent:\n  web_search:\n    url: "+engine.URL+"/?q={query}\n    key_header: X-Key\n")
	env := s.environment(object{"base_template": "slim", "networking": object{"type": "limited", "allowed_hosts": []string{"www.example.com", "away.example.com"}}})
	session := s.session(s.toolAgent("always_allow"), env)
	tool := func(name, member, value string) modeltest.ToolUse {
		input, _ := json.Marshal(map[string]string{member: value}) // strings only
		return modeltest.ToolUse{Name: name, Input: input}
	}
	s.say(session, modeltest.Script{{Tools: []modeltest.ToolUse{
		tool("web_fetch", "url", "https://www.example.com/"), tool("web_fetch", "url", "https://refused.example.com/"),
		tool("web_fetch", "url", "https://away.example.com/"), tool("web_search", "query", "atoll"),
	}}}.Message())
	log := s.idle(session, 1, 2*time.Minute)
	var got []string
	for _, e := range log {
		if e.Type == "agent.tool_result" {
			got = append(got, fmt.Sprint(*e.IsError, " ", e.text()))
		}
	}
	const refused = "true web_fetch: url_not_allowed: refused.example.com (port 443) is not in the allowed_hosts of this session's environment"
	want := []string{"false URL: https://www.example.com/\n\nhello over HTTP/2.0", refused, refused, "false "}
	if !slices.Equal(got, want) {
		t.Errorf("results:\n got %q\nwant %q", got, want)
	}
	var body string
	s.try("GET", "/v1/sessions/"+session+"/events?types[]=agent.tool_result", nil, &body)
	if !strings.Contains(body, `"source":"https://www.example.com/atoll"`) || strings.Contains(body, "Two") {
		t.Errorf("the results of the search are in %s", body)
	}
	if n := site.asked("refused"); n != 0 {
		t.Errorf("the refused host was asked %d times", n)
	}
	var decisions struct {
		Data []struct{ Host, Source, Verdict, Reason string }
	}
	s.call("GET", "/atoll/v1/sessions/"+session+"/egress?verdict=refused", nil, &decisions)
	if len(decisions.Data) == 0 || decisions.Data[0].Host != "refused.example.com" || decisions.Data[0].Source != "web_tool" {
		t.Errorf("refusals on record: %+v", decisions.Data)
	}
	var used struct {
		Usage struct {
			ServerToolUse map[string]int `json:"server_tool_use"`
		}
	}
	s.call("GET", "/v1/sessions/"+session, nil, &used)
	if u := used.Usage.ServerToolUse; u["web_fetch_requests"] != 3 || u["web_search_requests"] != 1 {
		t.Errorf("used %v", u)
	}
	server, err := os.ReadFile(s.LogFile())
	if err != nil || strings.Contains(string(server), searchKey) {
		t.Errorf("the server's log has the key of the search endpoint, or %v", err)
	}
}
