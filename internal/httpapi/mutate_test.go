package httpapi_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// mutated is a route with a request that is valid, to be spoiled.
type mutated struct {
	method, path, body, query string
}

// TestMutations: whatever is done to a valid request, the answer is a success
// or a 4xx, never a 5xx, and (by the transport) is as the OpenAPI document
// says. Requests are made at random from a seed that the failure names.
func TestMutations(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env, agent := r.pair()
	session := r.must("POST", "/v1/sessions", create(agent, env, "")).str("id")
	cursor := r.cursor("/v1/environments")
	envBody := `{"name":"x","description":"d","scope":"organization","metadata":{"a":"b"},"config":{"type":"cloud","base_template":"slim",
		"networking":{"type":"limited","allowed_hosts":["a.example.com","*.example.org"],"allow_mcp_servers":true,"allow_package_managers":false},
		"packages":{"type":"packages","apt":["jq"],"cargo":["ripgrep@14.0.0"],"gem":["rails:7.1.0"],"go":["example.com/x@latest"],"npm":["@a/b@1"],"pip":["numpy==1.26.0"]}}}`
	agentBody := `{"name":"x","model":{"id":"m","speed":"fast","effort":{"type":"low"},"inference_geo":"us"},"description":"d","system":"s","metadata":{"a":"b"},"skills":[],"multiagent":null,
		"execution_identity":{"type":"service_account"},"mcp_servers":[{"type":"url","name":"s","url":"https://mcp.example.com/x"}],
		"tools":[{"type":"mcp_toolset","mcp_server_name":"s","configs":[{"name":"t","enabled":false}]},
		{"type":"custom","name":"c","description":"d","input_schema":{"type":"object","properties":{"q":{"type":"string"}},"required":["q"]}},
		{"type":"agent_toolset_20260401","default_config":{"enabled":true,"permission_policy":{"type":"auto"}},"configs":[{"name":"web_fetch","allowed_domains":["example.com"],"max_content_tokens":5},
		{"name":"web_search","user_location":{"type":"approximate","country":"SE"}}]}]}`
	sessionBody := `{"agent":{"type":"agent_with_overrides","id":"` + agent + `","version":1,"model":"m","system":"s","tools":[],"mcp_servers":[],"skills":[]},
		"environment_id":"` + env + `","title":"t","metadata":{"a":"b"},"resources":[],"vault_ids":[],"initial_events":[]}`
	lists := "limit=5&page=" + cursor + "&include_archived=true&order=asc&agent_id=" + agent + "&agent_version=1&statuses[]=idle&created_at[gte]=2026-01-01T00:00:00Z&created_at[lt]=2099-01-01T00:00:00Z"
	routes := []mutated{
		{"POST", "/v1/environments", envBody, ""}, {"GET", "/v1/environments", "", lists},
		{"GET", "/v1/environments/" + env, "", ""}, {"POST", "/v1/environments/" + env, envBody, ""}, {"DELETE", "/v1/environments/env_x", "", ""}, {"POST", "/v1/environments/" + env + "/archive", "{}", ""},
		{"POST", "/v1/agents", agentBody, ""}, {"GET", "/v1/agents", "", lists}, {"GET", "/v1/agents/" + agent, "", "version=1"},
		{"POST", "/v1/agents/" + agent, strings.Replace(agentBody, `{`, `{"version":1,`, 1), ""}, {"GET", "/v1/agents/" + agent + "/versions", "", lists}, {"POST", "/v1/agents/agent_x/archive", "", ""},
		{"POST", "/v1/sessions", sessionBody, ""}, {"GET", "/v1/sessions", "", lists}, {"GET", "/v1/sessions/" + session, "", ""},
		{"POST", "/v1/sessions/" + session, `{"title":"t","metadata":{"a":null},"agent":{"tools":[],"mcp_servers":[]},"budget":null}`, ""},
		{"DELETE", "/v1/sessions/sesn_x", "", ""}, {"POST", "/v1/sessions/sesn_x/archive", "", ""},
	}
	keys := []string{key, key, key, key, key, key, r.sandBase(), "sk-wrong", "sk-sb-wrong", ""}
	statuses := map[int]int{}
	const rounds = 3000
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 20261122))
		route := routes[rnd.IntN(len(routes))]
		req := route.request(t, r, rnd)
		req.Header.Set("X-Api-Key", keys[rnd.IntN(len(keys))])
		got := r.do(req)
		statuses[got.status]++
		if got.status >= 500 || got.status < 200 || got.header.Get("Request-Id") == "" {
			t.Errorf("seed %d: %s %s: %d %s", seed, req.Method, req.URL, got.status, got.text)
		}
	}
	for _, status := range []int{200, 400, 401, 404, 405, 409} {
		if statuses[status] == 0 {
			t.Errorf("no request came to %d: the mutations are too narrow: %v", status, statuses)
		}
	}
	t.Logf("%d requests: %v", rounds, statuses)
}

// cursor is a cursor of a list.
func (r *rig) cursor(path string) string {
	r.pair()
	return r.must("GET", path+"?limit=1", "").str("next_page")
}

// request is the route's request with something done to it.
func (m mutated) request(t *testing.T, r *rig, rnd *rand.Rand) *http.Request {
	t.Helper()
	body, path, query, method := m.body, m.path, m.query, m.method
	switch {
	case body != "" && rnd.IntN(4) > 0:
		body = mutateJSON(t, body, rnd)
	case body != "":
		body = mutateBytes(body, rnd)
	}
	if query != "" {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		for name := range values {
			switch rnd.IntN(6) {
			case 0, 1, 2:
				delete(values, name)
			case 3:
				values[name] = []string{strangeText(rnd)}
			case 4:
				values.Set(name, mutateBytes(values.Get(name), rnd))
			}
		}
		query = values.Encode()
	}
	switch rnd.IntN(20) {
	case 0:
		path += "/" + url.PathEscape(strangeText(rnd))
	case 1:
		path = path[:strings.LastIndex(path, "/")+1] + url.PathEscape(strangeText(rnd))
	case 2:
		method = []string{"PUT", "PATCH", "DELETE", "OPTIONS", "GET", "POST"}[rnd.IntN(6)]
	}
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		return r.request(m.method, m.path, strings.NewReader(body))
	}
	req.URL.RawQuery = query
	if rnd.IntN(20) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if rnd.IntN(5) == 0 {
		req.Header.Set("Anthropic-Beta", url.QueryEscape(strangeText(rnd)))
		req.Header.Set("Anthropic-Version", url.QueryEscape(strangeText(rnd)))
	}
	return req
}

func strangeText(rnd *rand.Rand) string {
	texts := []string{"", " ", "\x00", "..", "/", "\xff\xfe", "λ\u202e", "null", "-1", "0", "99999999999999999999", "1.5", "true", "'; DROP TABLE environments; --",
		strings.Repeat("x", 70_000), strings.Repeat("é", 300), "page_", "page_e30", "page_eyJzIjoiIn0", "env_0", "*.com", "https://x", "--flag", "${x}", "%s%n", "2026-13-01T00:00:00Z", "\u0000"}
	return texts[rnd.IntN(len(texts))]
}

func strangeValue(rnd *rand.Rand) any {
	switch rnd.IntN(12) {
	case 0:
		return nil
	case 1:
		return rnd.IntN(2) == 0
	case 2:
		return rnd.IntN(10) - 5
	case 3:
		return json.Number("1e400")
	case 4:
		return 1.5
	case 5:
		return []any{}
	case 6:
		return []any{nil, strangeText(rnd)}
	case 7:
		return map[string]any{}
	case 8:
		return map[string]any{"type": strangeText(rnd), "x": 1}
	case 9:
		return slices.Repeat([]any{"a"}, 300)
	default:
		return strangeText(rnd)
	}
}

// mutateJSON changes values of a document in one to three places.
func mutateJSON(t *testing.T, text string, rnd *rand.Rand) string {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	for range 1 + rnd.IntN(3) {
		doc = mutateValue(doc, rnd)
	}
	// The name is made new half of the time, so that creates get through.
	if m, ok := doc.(map[string]any); ok && rnd.IntN(2) == 0 && m["name"] == "x" {
		m["name"] = fmt.Sprintf("n%d", rnd.Int64())
	}
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func mutateValue(v any, rnd *rand.Rand) any {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names)
		if len(names) == 0 || rnd.IntN(8) == 0 {
			v[strangeText(rnd)] = strangeValue(rnd)
			return v
		}
		name := names[rnd.IntN(len(names))]
		switch rnd.IntN(8) {
		case 0:
			delete(v, name)
		case 1:
			v[name] = strangeValue(rnd)
		case 2:
			v[name] = names
		default:
			v[name] = mutateValue(v[name], rnd)
		}
		return v
	case []any:
		switch {
		case len(v) == 0 || rnd.IntN(4) == 0:
			return append(v, strangeValue(rnd))
		case rnd.IntN(4) == 0:
			return append(v, v[0])
		}
		v[rnd.IntN(len(v))] = mutateValue(v[rnd.IntN(len(v))], rnd)
		return v
	default:
		return strangeValue(rnd)
	}
}

// mutateBytes spoils a text below its grammar.
func mutateBytes(text string, rnd *rand.Rand) string {
	b := []byte(text)
	for range 1 + rnd.IntN(4) {
		if len(b) == 0 {
			return string(b)
		}
		i := rnd.IntN(len(b))
		switch rnd.IntN(5) {
		case 0:
			b = b[:i]
		case 1:
			b[i] = byte(rnd.IntN(256))
		case 2:
			b = slices.Insert(b, i, []byte(`{"[],:\`)[rnd.IntN(7)])
		case 3:
			b = slices.Delete(b, i, min(len(b), i+1+rnd.IntN(10)))
		case 4:
			b = append(b, b[i:]...)
		}
	}
	return string(b)
}
