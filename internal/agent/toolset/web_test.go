package toolset_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/agent/toolset"
	"github.com/atoll-run/atoll/internal/egress"
)

const article = `<html><head><title> The  title </title><style>p{}</style><script>alert("<p>no</p>")</script></head><body>
<h1>Heading</h1><p>First <b>words</b>, a <a href="/more?x=1">link</a>.</p><ul><li>one<li>two</ul>
<pre>  code
    here</pre><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><svg><text>no</text></svg></body></html>`

// site answers for every host of the test.
func site(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	write := func(pattern, contentType string, body []byte) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write(body)
		})
	}
	redirect := func(pattern, to string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
	}
	write("/article", "text/html", []byte(article))
	write("/latin", "text/html; charset=iso-8859-1", []byte("<p>caf\xe9</p>"))
	write("/plain", "text/plain; charset=utf-8", []byte("plain ü"))
	write("/json", "application/json", []byte(`{"a":1}`))
	write("/pdf", "application/pdf", []byte("%PDF-1.7"))
	write("/png", "image/png", []byte("\x89PNG\r\n\x1a\n"))
	write("/gif-called-png", "image/png", []byte("GIF89a"))
	write("/page-called-png", "image/png", []byte(article))
	write("/zip", "application/zip", []byte("PK"))
	write("/long", "text/plain", []byte(strings.Repeat("word ", 60_000)))
	write("/huge", "text/plain", make([]byte, 11<<20))
	redirect("/inside", "/plain")
	redirect("/sideways", "http://other.example.com/plain")
	redirect("/away", "http://blocked.example.com/plain")
	redirect("/file", "file:///etc/passwd")
	redirect("/local", "http://127.0.0.1/plain")
	redirect("/loop", "/loop")
	mux.HandleFunc("/bomb", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/plain")
		z := gzip.NewWriter(w)
		zeros := bytes.Repeat([]byte{'a'}, 1<<20)
		for range 64 {
			if _, err := z.Write(zeros); err != nil {
				return
			}
		}
		_ = z.Close()
	})
	for _, status := range []int{404, 429, 500} {
		mux.HandleFunc(fmt.Sprint("/", status), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
	}
	return mux
}

func TestFetch(t *testing.T) {
	w := newWorld(t, true, site(t), "web.example.com", "other.example.com", "sub.web.example.com", "blocked.example.com")
	policy := compile(t, egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"web.example.com", "*.web.example.com", "other.example.com"},
		Endpoints: []egress.Endpoint{{Host: hostName("endpoint.example.com"), Rule: "mcp:x"}}})
	box := &memoryBox{}
	s := open(t, toolset.Config{}, toolset.SessionConfig{Tools: agentToolset(), Web: policy, DialWeb: w.dial(egress.SourceWebTool, policy), Box: box})
	const web = "http://web.example.com"
	for path, want := range map[string]string{
		web + "/article": "URL: http://web.example.com/article\nTitle: The title\n\n# Heading\n\nFirst **words**, a [link](http://web.example.com/more?x=1).\n\n" +
			"- one\n- two\n\n```\n  code\n    here\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |",
		web + "/latin":                     "URL: http://web.example.com/latin\n\ncafé",
		web + "/plain":                     "URL: http://web.example.com/plain\n\nplain ü",
		web + "/json":                      "URL: http://web.example.com/json\n\n{\"a\":1}",
		web + "/inside":                    "URL: http://web.example.com/plain\n\nplain ü",
		web + "/sideways":                  "URL: http://other.example.com/plain\n\nplain ü",
		"http://WEB.example.com:80/plain":  "URL: http://web.example.com/plain\n\nplain ü",
		"http://sub.web.example.com/plain": "URL: http://sub.web.example.com/plain\n\nplain ü",
	} {
		if got, _, r := run(t, s, toolset.Call{Name: "web_fetch"}, map[string]string{"url": path}); got != want || r.IsError {
			t.Errorf("%s: error %t\ngot  %q\nwant %q", path, r.IsError, got, want)
		}
	}
	for path, want := range map[string]string{
		"http://blocked.example.com/plain":    "web_fetch: url_not_allowed: blocked.example.com (port 80) is not in the allowed_hosts of this session's environment",
		"http://endpoint.example.com:81/":     "web_fetch: url_not_allowed: endpoint.example.com (port 81)",
		"http://web.example.com:81/plain":     "web_fetch: url_not_allowed: web.example.com (port 81)",
		"http://127.0.0.1/plain":              "web_fetch: url_not_allowed: 127.0.0.1 is not an allowed web host",
		web + "/away":                         "web_fetch: url_not_allowed: blocked.example.com",
		web + "/file":                         "web_fetch: url_not_allowed: a redirect to what is no web address",
		web + "/local":                        "web_fetch: url_not_allowed: 127.0.0.1 is not an allowed web host",
		web + "/loop":                         "web_fetch: url_not_accessible: more than 10 redirects",
		web + "/404":                          "web_fetch: url_not_accessible: web.example.com answered 404 Not Found",
		web + "/500":                          "web_fetch: url_not_accessible: web.example.com answered 500",
		web + "/429":                          "web_fetch: too_many_requests",
		web + "/zip":                          "web_fetch: unsupported_content_type: application/zip",
		web + "/page-called-png":              "web_fetch: unsupported_content_type: http://web.example.com/page-called-png is called image/png: its content is neither an image nor a PDF",
		web + "/huge":                         "web_fetch: url_not_accessible: the content is longer than",
		web + "/bomb":                         "web_fetch: url_not_accessible: the content is longer than",
		"ftp://web.example.com/":              "web_fetch: invalid_input",
		"http://user:pass@web.example.com/":   "web_fetch: invalid_input",
		"http://web.example.com:0/":           "web_fetch: invalid_input",
		"":                                    "web_fetch: invalid_input",
		web + "/" + strings.Repeat("x", 3000): "web_fetch: invalid_input",
	} {
		if got, _, r := run(t, s, toolset.Call{Name: "web_fetch"}, map[string]string{"url": path}); !strings.HasPrefix(got, want) || !r.IsError {
			t.Errorf("%.60s: error %t, %q", path, r.IsError, got)
		}
	}
	if asked := w.requests(); strings.Contains(asked, "blocked.example.com") || strings.Contains(asked, "127.") {
		t.Errorf("requests went where none may: %s", asked)
	}
	for path, want := range map[string]string{"/pdf": `{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"JVBERi0xLjc="}}`,
		"/gif-called-png": `{"type":"image","source":{"type":"base64","media_type":"image/gif","data":"R0lGODlh"}}`,
		"/png":            `{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}`} {
		if _, others, r := run(t, s, toolset.Call{Name: "web_fetch"}, map[string]string{"url": web + path}); r.IsError || len(others) != 1 || string(others[0]) != want {
			t.Errorf("%s: %s", path, others)
		}
	}
	got, _, _ := run(t, s, toolset.Call{ID: "sevt_long", Name: "web_fetch"}, map[string]string{"url": web + "/long"})
	if !strings.HasSuffix(got, "[output truncated: the whole text, 300034 bytes, is in /mnt/session/tool_outputs/sevt_long.txt]") || len(got) > 101_000 {
		t.Errorf("long text: %d bytes, %q", len(got), got[len(got)-120:])
	}
	if len(box.calls) != 1 || box.calls[0].ID != "sevt_long_spill" || !bytes.Contains(box.calls[0].Input, []byte("word word")) {
		t.Errorf("kept in the sandbox: %d calls", len(box.calls))
	}
	records, err := w.gateway.Records("sesn_test", egress.Filter{})
	if err != nil || len(records) == 0 || records[0].Source != egress.SourceWebTool {
		t.Errorf("decisions: %+v %v", records, err)
	}
}

func TestFetchConfig(t *testing.T) {
	w := newWorld(t, true, site(t), "web.example.com", "sub.web.example.com", "other.example.com", "inner.example.com")
	open := func(policy *egress.Policy, config api.ToolConfig) *toolset.Session {
		config.Name = "web_fetch"
		return open(t, toolset.Config{}, toolset.SessionConfig{Tools: agentToolset(config), Web: policy, DialWeb: w.dial(egress.SourceWebTool, policy)})
	}
	fetch := func(s *toolset.Session, url string) string {
		t.Helper()
		got, _, _ := run(t, s, toolset.Call{Name: "web_fetch"}, map[string]string{"url": url})
		return got
	}
	public := compile(t, egress.Spec{Mode: egress.ModeUnrestricted})
	allowed := open(public, api.ToolConfig{AllowedDomains: []string{"Web.example.com"}})
	blocked := open(public, api.ToolConfig{BlockedDomains: []string{"web.example.com"}})
	for url, want := range map[string]string{"http://web.example.com/plain": "yes no", "http://sub.web.example.com/plain": "yes no", "http://other.example.com/plain": "no yes"} {
		ok := func(s *toolset.Session) string {
			if strings.HasSuffix(fetch(s, url), "plain ü") {
				return "yes"
			}
			return "no"
		}
		if got := ok(allowed) + " " + ok(blocked); got != want {
			t.Errorf("%s: allowed and blocked: %s, want %s", url, got, want)
		}
	}
	ten := 10
	if got := fetch(open(public, api.ToolConfig{MaxContentTokens: &ten}), "http://web.example.com/long"); !strings.HasSuffix(got, "\n\n"+strings.Repeat("word ", 8)+"\n[content truncated to about 10 tokens]") {
		t.Errorf("ten tokens: %q", got)
	}
	for name, policy := range map[string]*egress.Policy{"empty": compile(t, egress.Spec{Mode: egress.ModeLimited, Endpoints: []egress.Endpoint{{Host: hostName("web.example.com"), Rule: "registry:x"}}}), "none": nil} {
		if got := fetch(open(policy, api.ToolConfig{}), "http://web.example.com/plain"); got != "web_fetch: url_not_allowed: this session's environment allows no web hosts" {
			t.Errorf("%s policy: %q", name, got)
		}
	}
	// The guard has the last word: a public policy does not reach this host.
	inner := newWorld(t, true, site(t))
	policy := compile(t, egress.Spec{Mode: egress.ModeUnrestricted})
	s := openSession(t, inner, policy)
	for _, url := range []string{"http://inner.example.com/plain", "http://127.77.3.2/plain", "http://[::1]/plain", "http://169.254.169.254/latest"} {
		if got := fetch(s, url); got != "web_fetch: url_not_allowed: the connection was not made (address_not_public)" {
			t.Errorf("%s: %q", url, got)
		}
	}
	if got := fetch(s, "http://nowhere.example.org/"); got != "web_fetch: url_not_accessible: the connection was not made (resolve_failed)" {
		t.Errorf("a name that is not there: %q", got)
	}
	if inner.requests() != "" {
		t.Errorf("requests came through: %s", inner.requests())
	}
}

func openSession(t *testing.T, w *world, policy *egress.Policy) *toolset.Session {
	return open(t, toolset.Config{}, toolset.SessionConfig{Tools: agentToolset(), Web: policy, DialWeb: w.dial(egress.SourceWebTool, policy)})
}

func TestSearch(t *testing.T) {
	var asked string
	reply := `{"web":{"results":[{"title":"One","link":"http://web.example.com/1","about":"first\n thing"},
		{"title":"Two","link":"http://other.example.com/2","about":"second"},{"title":"","link":"https://sub.web.example.com/3"},
		{"title":"none"},{"link":"javascript:alert(1)"},{"link":7},"x",null]}}`
	status := http.StatusOK
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.RawQuery + " " + r.Header.Get("X-Key")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(reply))
	}))
	defer endpoint.Close()
	config := toolset.Config{Search: &toolset.Search{URL: endpoint.URL + "/s?q={query}&n={count}&c={country}", Headers: map[string]string{"X-Key": "secret"},
		Results: "web.results", Link: "link", Snippet: "about"}}
	policy := compile(t, egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"web.example.com", "*.web.example.com"}})
	tools := agentToolset(api.ToolConfig{Name: "web_search", UserLocation: &api.UserLocation{Country: "DE", City: "Köln"}})
	s := open(t, config, toolset.SessionConfig{Tools: tools, Web: policy})
	search := func(s *toolset.Session, query string) (string, []json.RawMessage, toolset.Result) {
		t.Helper()
		return run(t, s, toolset.Call{Name: "web_search"}, map[string]string{"query": query})
	}
	_, hits, r := search(s, "a & b?")
	want := []string{`{"type":"search_result","source":"http://web.example.com/1","title":"One","content":[{"type":"text","text":"first thing"}],"citations":{"enabled":false}}`,
		`{"type":"search_result","source":"https://sub.web.example.com/3","title":"sub.web.example.com","content":[{"type":"text","text":"https://sub.web.example.com/3"}],"citations":{"enabled":false}}`}
	if r.IsError || len(hits) != 2 || string(hits[0]) != want[0] || string(hits[1]) != want[1] {
		t.Errorf("results: %s", hits)
	}
	if asked != "q=a+%26+b%3F&n=10&c=DE secret" {
		t.Errorf("the endpoint was asked %q", asked)
	}
	offered, _ := s.Tools(t.Context())
	if last := offered[len(offered)-1]; last.Name != "web_search" || !strings.Contains(last.Description, "Köln, DE") {
		t.Errorf("offered: %+v", last)
	}
	asked = ""
	none := open(t, config, toolset.SessionConfig{Tools: tools, Web: compile(t, egress.Spec{Mode: egress.ModeLimited})})
	if got, _, r := search(none, "x"); !r.IsError || got != "web_search: url_not_allowed: this session's environment allows no web hosts" || asked != "" {
		t.Errorf("no hosts: %q, asked %q", got, asked)
	}
	paths := open(t, config, toolset.SessionConfig{Tools: agentToolset(api.ToolConfig{Name: "web_search", AllowedDomains: []string{"other.example.com/2"}}),
		Web: compile(t, egress.Spec{Mode: egress.ModeUnrestricted})})
	if _, hits, _ := search(paths, "x"); len(hits) != 1 || !strings.Contains(string(hits[0]), "other.example.com/2") {
		t.Errorf("with allowed_domains: %s", hits)
	}
	for _, bad := range []string{`{"web":{"results":{}}}`, `[]`, `no`, ``, strings.Repeat("[", 100000)} {
		reply = bad
		if got, _, r := search(s, "x"); !r.IsError || !strings.HasPrefix(got, "web_search: unavailable") {
			t.Errorf("reply %.20q: %q", bad, got)
		}
	}
	reply, status = `{"web":{"results":[]}}`, http.StatusOK
	if got, _, r := search(s, "x"); r.IsError || got != "no results" {
		t.Errorf("nothing found: %q", got)
	}
	status = http.StatusUnauthorized
	if got, _, r := search(s, "x"); !r.IsError || !strings.HasPrefix(got, "web_search: unavailable") || strings.Contains(got, "secret") {
		t.Errorf("refused: %q", got)
	}
	if got, _, r := search(s, " "); !r.IsError || !strings.HasPrefix(got, "web_search: invalid_input") {
		t.Errorf("no query: %q", got)
	}
	off := open(t, toolset.Config{}, toolset.SessionConfig{Tools: tools, Web: policy})
	if got, _, r := search(off, "x"); !r.IsError || got != "web_search: unavailable: this server has no search endpoint configured" {
		t.Errorf("not configured: %q", got)
	}
	offered, _ = off.Tools(t.Context())
	for _, tool := range offered {
		if tool.Name == "web_search" {
			t.Error("a search that is not there is offered")
		}
	}
}

// The key goes to one place of the request, and into no result or log.
func TestSearchKey(t *testing.T) {
	var asked string
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = fmt.Sprintf("%s auth=%q x-token=%q", r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("X-Token"))
		w.WriteHeader(http.StatusForbidden)
	}))
	defer endpoint.Close()
	policy := compile(t, egress.Spec{Mode: egress.ModeUnrestricted})
	for want, search := range map[string]toolset.Search{
		`q=x auth="Bearer s&cret" x-token=""`:    {URL: endpoint.URL + "/?q={query}"},
		`q=x auth="" x-token="s&cret"`:           {URL: endpoint.URL + "/?q={query}", KeyHeader: "X-Token"},
		`q=x&k=s%26cret auth="" x-token="plain"`: {URL: endpoint.URL + "/?q={query}&k={key}", Headers: map[string]string{"X-Token": "plain"}},
	} {
		search.Key = "s&cret"
		var log bytes.Buffer
		s := open(t, toolset.Config{Search: &search, Logger: slog.New(slog.NewTextHandler(&log, nil))}, toolset.SessionConfig{Tools: agentToolset(), Web: policy})
		got, _, r := run(t, s, toolset.Call{Name: "web_search"}, map[string]string{"query": "x"})
		if asked != want {
			t.Errorf("the endpoint was asked %s, want %s", asked, want)
		}
		if all := got + log.String(); !r.IsError || log.Len() == 0 || strings.Contains(all, "s&cret") || strings.Contains(all, "s%26cret") {
			t.Errorf("the result or the log tell the key, or nothing: %s", all)
		}
	}
	for want, bad := range map[string]toolset.Search{
		"no key to put":        {URL: "https://search.example.com/?q={query}&k={key}"},
		"there is no key":      {URL: "https://search.example.com/?q={query}", KeyHeader: "X-Token"},
		"goes into the url":    {URL: "https://search.example.com/?q={query}&k={key}", KeyHeader: "X-Token", Key: "s"},
		"name of a header":     {URL: "https://search.example.com/?q={query}", KeyHeader: "a b", Key: "s"},
		"no header takes":      {URL: "https://search.example.com/?q={query}", Key: "secret\n"},
		"X-Token is the key's": {URL: "https://search.example.com/?q={query}", KeyHeader: "X-Token", Key: "s", Headers: map[string]string{"x-token": "t"}},
	} {
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v, want %q", bad, err, want)
		}
	}
}

func TestSearchConfig(t *testing.T) {
	for _, c := range []toolset.Search{{}, {URL: "https://search.example.com/"}, {URL: "ftp://x/?q={query}"}, {URL: "https://{query}.example.com/?q={query}"},
		{URL: "https://u:p@search.example.com/?q={query}"}, {URL: "https://search.example.com/?q={query}&x={page}"},
		{URL: "https://search.example.com/?q={query}", Headers: map[string]string{"a b": "c"}}, {URL: "https://search.example.com/?q={query}", Count: 51}} {
		if _, err := toolset.New(toolset.Config{Search: &c}); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}
