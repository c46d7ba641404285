package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/control"
)

// pair makes an environment and an agent.
func (r *rig) pair() (environment, agent string) {
	r.t.Helper()
	n := len(r.must("GET", "/v1/environments?limit=1000&include_archived=true", "").body["data"].([]any))
	environment = r.must("POST", "/v1/environments", fmt.Sprintf(`{"name":"env %d"}`, n)).str("id")
	agent = r.must("POST", "/v1/agents", `{"name":"agent","model":"m","description":"d","system":"s","metadata":{"not":"shown"},"tools":[{"type":"agent_toolset_20260401"}]}`).str("id")
	return environment, agent
}

// timeless leaves out what changes by itself.
var timeless = cmpopts.IgnoreMapEntries(func(key string, _ any) bool { return key == "duration_seconds" })

// noUsage is the usage of a session that has not run.
func noUsage() map[string]any {
	return map[string]any{"input_tokens": 0.0, "output_tokens": 0.0, "cache_read_input_tokens": 0.0, "active_seconds": 0.0,
		"cache_creation":  map[string]any{"ephemeral_1h_input_tokens": 0.0, "ephemeral_5m_input_tokens": 0.0},
		"server_tool_use": map[string]any{"web_fetch_requests": 0.0, "web_search_requests": 0.0}}
}

func create(agent, environment, more string) string {
	if !strings.HasPrefix(agent, "{") {
		agent = quote(agent)
	}
	if more != "" {
		more = "," + more
	}
	return `{"agent":` + agent + `,"environment_id":` + quote(environment) + more + `}`
}

// TestCreateSession: the object and the ways to name an agent.
func TestCreateSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env, agent := r.pair()
	r.must("POST", "/v1/agents/"+agent, `{"name":"second","system":null}`)
	newest := r.must("GET", "/v1/agents/"+agent, "").body
	oldest := r.must("GET", "/v1/agents/"+agent+"?version=1", "").body
	snapshot := func(of map[string]any, more ...any) map[string]any {
		m := maps.Clone(of)
		for _, key := range []string{"metadata", "created_at", "updated_at", "archived_at"} {
			delete(m, key)
		}
		return with(m, more...)
	}
	ref := func(text string) string { return `{"type":"agent","id":"` + agent + `"` + text + `}` }
	over := func(text string) string { return `{"type":"agent_with_overrides","id":"` + agent + `"` + text + `}` }
	tests := []struct {
		name, agent, more string
		want              map[string]any
	}{
		{"string", agent, "", map[string]any{"agent": snapshot(newest)}},
		{"object", ref(``), "", map[string]any{"agent": snapshot(newest)}},
		{"pinned", ref(`,"version":1`), "", map[string]any{"agent": snapshot(oldest)}},
		{"title and metadata", agent, `"title":"t","metadata":{"a":"b"}`, map[string]any{"agent": snapshot(newest), "title": "t", "metadata": map[string]any{"a": "b"}}},
		{"empties", agent, `"title":null,"metadata":{},"resources":[],"vault_ids":[],"initial_events":[]`, map[string]any{"agent": snapshot(newest)}},
		{"no overrides", over(`,"version":1`), "", map[string]any{"agent": snapshot(oldest)}},
		{"overrides", over(`,"version":1,"model":{"id":"n","speed":"fast"},"system":"other","tools":[],"mcp_servers":[],"skills":[]`), "",
			map[string]any{"agent": snapshot(oldest, "model", map[string]any{"id": "n", "speed": "fast"}, "system", "other", "tools", []any{})}},
		{"system cleared", over(`,"version":1,"system":null`), "", map[string]any{"agent": snapshot(oldest, "system", nil)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := r.must("POST", "/v1/sessions", create(test.agent, env, test.more))
			want := map[string]any{"type": "session", "id": got.str("id"), "status": "idle", "environment_id": env, "title": nil, "metadata": map[string]any{},
				"resources": []any{}, "vault_ids": []any{}, "stats": map[string]any{"active_seconds": 0.0}, "usage": noUsage(), "outcome_evaluations": []any{},
				"budget": nil, "archived_at": nil, "created_at": got.str("created_at"), "updated_at": got.str("created_at")}
			maps.Copy(want, test.want)
			if diff := cmp.Diff(want, got.body, timeless); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got.body, r.must("GET", "/v1/sessions/"+got.str("id"), "").body, timeless); diff != "" {
				t.Errorf("retrieve:\n%s", diff)
			}
			if calls := r.runtime.take(); !slices.Contains(calls, "created "+got.str("id")) {
				t.Errorf("runtime: %v", calls)
			}
		})
	}
}

// TestSessionSnapshot: what a session runs does not change with its agent and
// its environment.
func TestSessionSnapshot(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env := r.must("POST", "/v1/environments", `{"name":"e","config":{"type":"cloud","base_template":"slim","networking":{"type":"limited","allowed_hosts":["mcp.example.com"],"allow_mcp_servers":true},"packages":{"pip":["pandas"]}}}`).str("id")
	agent := r.must("POST", "/v1/agents", `{"name":"a","model":"m","mcp_servers":[`+mcp("a", "https://MCP.example.com/x")+`,`+mcp("b", "http://b.example.com:8080")+`],
		"tools":[{"type":"mcp_toolset","mcp_server_name":"a"},{"type":"mcp_toolset","mcp_server_name":"b"}]}`).str("id")
	id := r.must("POST", "/v1/sessions", create(agent, env, "")).str("id")
	r.must("POST", "/v1/environments/"+env, `{"config":{"type":"cloud","base_template":"base","networking":{"type":"unrestricted"},"packages":{"pip":[]}}}`)
	r.must("POST", "/v1/agents/"+agent, `{"tools":[],"mcp_servers":[]}`)
	rec, err := r.store.Session(context.Background(), r.workspace, id)
	if err != nil {
		t.Fatal(err)
	}
	config, err := control.SessionConfig(rec)
	if err != nil {
		t.Fatal(err)
	}
	if config.BaseTemplate != "slim" || config.Networking.Type != "limited" || !slices.Equal(config.Packages.Pip, []string{"pandas"}) {
		t.Errorf("config %+v", config)
	}
	var ends []string
	for _, e := range config.Policy.Spec().Endpoints {
		ends = append(ends, fmt.Sprintf("%s:%d %s", e.Host, e.Port, e.Rule))
	}
	if diff := cmp.Diff([]string{"mcp.example.com:443 mcp:a", "b.example.com:8080 mcp:b"}, ends); diff != "" {
		t.Error(diff)
	}
}

// TestSessionRefused: 10.2, 3.11 and what comes later.
func TestSessionRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env, agent := r.pair()
	archivedEnv, archivedAgent := r.pair()
	r.must("POST", "/v1/environments/"+archivedEnv+"/archive", "")
	r.must("POST", "/v1/agents/"+archivedAgent+"/archive", "")
	selfHosted := r.must("POST", "/v1/environments", `{"name":"sh","config":{"type":"self_hosted"}}`).str("id")
	over := func(text string) string { return `{"type":"agent_with_overrides","id":"` + agent + `",` + text + `}` }
	tests := []struct {
		name, body string
		status     int
		message    string
	}{
		{"no agent", `{"environment_id":"x"}`, 400, "agent: Field required"},
		{"no environment", `{"agent":"x"}`, 400, "environment_id: Field required"},
		{"agent number", `{"agent":1,"environment_id":"x"}`, 400, "agent: Input should be a valid string or dictionary"},
		{"agent type", create(`{"type":"robot","id":"x"}`, env, ""), 400, "agent.type: Input should be 'agent' or 'agent_with_overrides'"},
		{"agent empty", create("", env, ""), 400, "agent.id: String should have at least 1 character"},
		{"agent long", create(strings.Repeat("x", 129), env, ""), 400, "agent.id: String should have at most 128 characters"},
		{"agent version", create(`{"type":"agent","id":"x","version":0}`, env, ""), 400, "agent.version: Input should be greater than or equal to 1"},
		{"override on agent", create(`{"type":"agent","id":"x","model":"m"}`, env, ""), 400, "agent.model: Extra inputs are not permitted"},
		{"override tools", create(over(`"tools":[{"type":"custom","name":"!","description":"d","input_schema":{"type":"object"}}]`), env, ""), 400, "agent.tools[0].name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"},
		{"override references", create(over(`"mcp_servers":[`+mcp("a", "https://a.example.com")+`]`), env, ""), 400, `agent.mcp_servers[0].name: "a" is not used by an mcp_toolset in tools`},
		{"override tools null", create(over(`"tools":null`), env, ""), 400, "agent.tools: Input should be a valid list"},
		{"override skills", create(over(`"skills":[{"type":"anthropic","skill_id":"x"}]`), env, ""), 400, "agent.skills: not supported yet by this server"},
		{"title", create(agent, env, `"title":"`+strings.Repeat("x", 501)+`"`), 400, "title: String should have at most 500 characters"},
		{"metadata", create(agent, env, `"metadata":{`+pairs(17)+`}`), 400, "metadata: Dictionary should have at most 16 items"},
		{"resources", create(agent, env, `"resources":[{"type":"file","file_id":"x"}]`), 400, "resources: not supported yet by this server"},
		{"vaults", create(agent, env, `"vault_ids":["x"]`), 400, "vault_ids: not supported yet by this server"},
		{"events", create(agent, env, `"initial_events":[{"type":"user.message"}]`), 400, "initial_events[0].content: Field required"},
		{"budget", create(agent, env, `"budget":{"type":"limit"}`), 400, "budget: not supported yet by this server"},
		{"unknown", create(agent, env, `"color":1`), 400, "color: Extra inputs are not permitted"},
		{"foreign agent", create("agent_x", env, ""), 404, "Agent agent_x not found."},
		{"foreign version", create(`{"type":"agent","id":"`+agent+`","version":9}`, env, ""), 404, "Agent " + agent + " has no version 9."},
		{"foreign environment", create(agent, "env_x", ""), 404, "Environment env_x not found."},
		{"archived environment", create(agent, archivedEnv, ""), 400, "Environment " + archivedEnv + " is archived."},
		{"archived agent", create(archivedAgent, env, ""), 400, "Agent " + archivedAgent + " is archived."},
		{"self hosted", create(agent, selfHosted, ""), 400, "Environment " + selfHosted + " is self_hosted: sessions on self-hosted environments are not supported yet by this server."},
	}
	for _, test := range tests {
		got := r.ask("POST", "/v1/sessions", test.body)
		if got.status != test.status || got.message() != test.message {
			t.Errorf("%s: %d %s\nwant %d %s", test.name, got.status, got.text, test.status, test.message)
		}
	}
	if data := r.must("GET", "/v1/sessions?include_archived=true", "").body["data"].([]any); len(data) != 0 {
		t.Errorf("a refused create left %d sessions", len(data))
	}
}

// TestE201MCPHosts (its number in the network test matrix): a limited environment must let the agent's MCP servers
// through.
func TestE201MCPHosts(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	tests := []struct {
		networking, url string
		ok              bool
	}{
		{`{"type":"unrestricted"}`, "https://mcp.example.com", true},
		{`{"type":"limited"}`, "https://mcp.example.com", false},
		{`{"type":"limited","allow_mcp_servers":true}`, "https://mcp.example.com", true},
		{`{"type":"limited","allow_mcp_servers":true}`, "https://192.0.2.1/", false},
		{`{"type":"limited","allowed_hosts":["mcp.example.com"]}`, "https://MCP.Example.com/sse", true},
		{`{"type":"limited","allowed_hosts":["mcp.example.com"]}`, "https://mcp.example.com:8443/", false},
		{`{"type":"limited","allowed_hosts":["*.example.com"]}`, "https://a.b.example.com", true},
		{`{"type":"limited","allowed_hosts":["*.example.com"]}`, "https://example.com", false},
	}
	for i, test := range tests {
		env := r.must("POST", "/v1/environments", fmt.Sprintf(`{"name":"e%d","config":{"type":"cloud","networking":%s}}`, i, test.networking)).str("id")
		agent := r.must("POST", "/v1/agents", `{"name":"a","model":"m","mcp_servers":[`+mcp("s", test.url)+`],"tools":[{"type":"mcp_toolset","mcp_server_name":"s"}]}`).str("id")
		got := r.ask("POST", "/v1/sessions", create(agent, env, ""))
		if ok := got.status == 200; ok != test.ok || !ok && (got.status != 400 || !strings.HasPrefix(got.message(), "Environment "+env+` does not allow the MCP server "s"`)) {
			t.Errorf("%s %s: %d %s", test.networking, test.url, got.status, got.text)
		}
		plain := r.must("POST", "/v1/agents", `{"name":"p","model":"m"}`).str("id")
		id := r.must("POST", "/v1/sessions", create(plain, env, "")).str("id")
		got = r.ask("POST", "/v1/sessions/"+id, `{"agent":{"mcp_servers":[`+mcp("s", test.url)+`],"tools":[{"type":"mcp_toolset","mcp_server_name":"s"}]}}`)
		if ok := got.status == 200; ok != test.ok {
			t.Errorf("update %s %s: %d %s", test.networking, test.url, got.status, got.text)
		}
	}
}

// TestUpdateSession: 10.3.
func TestUpdateSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env, agent := r.pair()
	tests := []struct {
		name, body string
		want       map[string]any
	}{
		{"empty", `{}`, nil},
		{"nulls that keep", `{"metadata":null,"vault_ids":null,"budget":null}`, nil},
		{"title", `{"title":"new"}`, map[string]any{"title": "new"}},
		{"title null", `{"title":null}`, map[string]any{"title": nil}},
		{"metadata", `{"metadata":{"a":null,"b":"","c":"3"}}`, map[string]any{"metadata": map[string]any{"b": "", "c": "3"}}},
		{"same", `{"title":"t","metadata":{"a":"1"},"agent":{}}`, nil},
		{"tools", `{"agent":{"tools":[]}}`, map[string]any{"agent tools": []any{}}},
	}
	for _, test := range tests {
		before := r.must("POST", "/v1/sessions", create(agent, env, `"title":"t","metadata":{"a":"1"}`))
		got := r.must("POST", "/v1/sessions/"+before.str("id"), test.body)
		want := maps.Clone(before.body)
		maps.Copy(want, test.want)
		if tools, ok := want["agent tools"]; ok {
			delete(want, "agent tools")
			want["agent"] = with(want["agent"].(map[string]any), "tools", tools)
		}
		if len(test.want) > 0 {
			want["updated_at"] = got.str("updated_at")
		}
		if diff := cmp.Diff(want, got.body, timeless); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	id := r.must("POST", "/v1/sessions", create(agent, env, "")).str("id")
	for body, message := range map[string]string{
		`{"title":""}`:                     "title: String should have at least 1 character",
		`{"vault_ids":["x"]}`:              "vault_ids: not supported yet by this server",
		`{"budget":{"type":"limit"}}`:      "budget: not supported yet by this server",
		`{"metadata":{` + pairs(17) + `}}`: "metadata: Dictionary should have at most 16 items",
		`{"agent":{"model":"m"}}`:          "agent.model: Extra inputs are not permitted",
		`{"agent":null}`:                   "agent: Input should be a valid dictionary",
		`{"status":"idle"}`:                "status: Extra inputs are not permitted",
	} {
		if got := r.ask("POST", "/v1/sessions/"+id, body); got.status != 400 || got.message() != message {
			t.Errorf("%s: %d %s", body, got.status, got.text)
		}
	}
}

func (r *rig) setStatus(id, status string) {
	r.t.Helper()
	_, err := r.store.UpdateSession(context.Background(), r.workspace, id, func(rec *control.SessionRecord) (bool, error) {
		rec.Status = status
		return true, nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestSessionLifecycle: archive, delete and what they mean for the environment.
func TestSessionLifecycle(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	sb := r.sandBase()
	env, agent := r.pair()
	id := r.must("POST", "/v1/sessions", create(agent, env, "")).str("id")
	path := "/v1/sessions/" + id
	r.setStatus(id, api.SessionRunning)
	for _, ask := range [][2]string{{"DELETE", path}, {"POST", path + "/archive"}} {
		verb := map[string]string{"DELETE": "delete", "POST": "archive"}[ask[0]]
		got := r.ask(ask[0], ask[1], "")
		if got.status != 400 || got.message() != "Cannot "+verb+" session while it is running. Send an interrupt event or wait for the session to complete." {
			t.Errorf("%d %s", got.status, got.text)
		}
	}
	if got := r.ask("POST", path, `{"agent":{"tools":[]}}`); got.status != 400 {
		t.Errorf("update of a running agent: %d %s", got.status, got.text)
	}
	r.setStatus(id, api.SessionIdle)
	conflict(t, r.ask("DELETE", "/v1/environments/"+env, ""), "invalid_request_error")
	conflict(t, r.askAs(sb, "DELETE", "/v1/environments/"+env, ""), "conflict")
	r.must("POST", "/v1/environments/"+env+"/archive", "")
	if got := r.must("GET", path, ""); got.str("status") != "idle" {
		t.Error("archiving an environment touches its sessions")
	}
	r.runtime.take()
	first := r.must("POST", path+"/archive", "")
	if first.str("status") != "terminated" || first.str("archived_at") == "" {
		t.Error(first.text)
	}
	if diff := cmp.Diff(first.body, r.must("POST", path+"/archive", "").body); diff != "" {
		t.Error(diff)
	}
	if calls := r.runtime.take(); !slices.Contains(calls, "ended "+id) {
		t.Errorf("runtime: %v", calls)
	}
	if got := r.ask("POST", path, `{"title":"x"}`); got.status != 400 || got.message() != "Session "+id+" is archived." {
		t.Errorf("%d %s", got.status, got.text)
	}
	conflict(t, r.ask("DELETE", "/v1/environments/"+env, ""), "invalid_request_error") // it counts until it is deleted
	gone := r.must("DELETE", path, "")
	if diff := cmp.Diff(map[string]any{"id": id, "type": "session_deleted"}, gone.body); diff != "" {
		t.Error(diff)
	}
	// Before the row goes, and once more after it: a command may have come between.
	if diff := cmp.Diff([]string{"ended " + id, "ended without a row " + id, "ended " + id}, r.runtime.take()); diff != "" {
		t.Errorf("when the sandbox ends:\n%s", diff)
	}
	for _, ask := range [][3]string{{"GET", path, ""}, {"DELETE", path, ""}, {"POST", path, "{}"}, {"POST", path + "/archive", ""}} {
		if got := r.ask(ask[0], ask[1], ask[2]); got.status != 404 || got.message() != "Session "+id+" not found." {
			t.Errorf("%s: %d %s", ask, got.status, got.text)
		}
	}
	r.must("DELETE", "/v1/environments/"+env, "")
	t.Run("a sandbox that does not end keeps the row", func(t *testing.T) {
		env, agent := r.pair()
		id := r.must("POST", "/v1/sessions", create(agent, env, "")).str("id")
		r.runtime.fail = errors.New("the disk of node7 is on fire")
		got := r.ask("DELETE", "/v1/sessions/"+id, "")
		if got.status != 500 || got.str("error", "type") != "api_error" || got.message() != "Internal server error" {
			t.Errorf("%d %s", got.status, got.text)
		}
		if !strings.Contains(r.log.String(), "node7") {
			t.Error("the cause is not in the log")
		}
		r.runtime.fail = nil
		r.must("GET", "/v1/sessions/"+id, "")
		r.must("DELETE", "/v1/sessions/"+id, "")
	})
}

// TestListSessions: filters and both directions.
func TestListSessions(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	env, agent := r.pair()
	_, agent2 := r.pair()
	r.must("POST", "/v1/agents/"+agent2, `{"name":"v2"}`)
	var made, times []string
	for i := range 9 {
		a := agent
		if i%3 == 0 {
			a = `{"type":"agent","id":"` + agent2 + `","version":` + fmt.Sprint(1+i%2) + `}`
		}
		s := r.must("POST", "/v1/sessions", create(a, env, ""))
		made, times = append(made, s.str("id")), append(times, s.str("created_at"))
	}
	newest := slices.Clone(made)
	slices.Reverse(newest)
	r.setStatus(made[1], api.SessionRunning)
	pick := func(from []string, keep ...int) []string {
		var ids []string
		for _, i := range keep {
			ids = append(ids, from[i])
		}
		return ids
	}
	tests := []struct {
		query url.Values
		want  []string
	}{
		{url.Values{}, newest},
		{url.Values{"limit": {"4"}}, newest},
		{url.Values{"limit": {"4"}, "order": {"asc"}}, made},
		{url.Values{"order": {"desc"}}, newest},
		{url.Values{"agent_id": {agent2}, "order": {"asc"}, "limit": {"2"}}, pick(made, 0, 3, 6)},
		{url.Values{"agent_id": {agent2}, "agent_version": {"2"}}, pick(made, 3)},
		{url.Values{"agent_id": {"agent_x"}}, nil},
		{url.Values{"statuses[]": {"running"}}, pick(made, 1)},
		{url.Values{"statuses[]": {"running", "idle", "idle"}, "limit": {"4"}}, newest},
		{url.Values{"statuses[]": {"terminated"}}, nil},
		{url.Values{"created_at[gt]": {times[2]}, "created_at[lt]": {times[5]}, "order": {"asc"}}, pick(made, 3, 4)},
		{url.Values{"created_at[gte]": {times[2]}, "created_at[lte]": {times[5]}, "order": {"asc"}, "limit": {"1"}}, pick(made, 2, 3, 4, 5)},
		{url.Values{"created_at[gt]": {times[5]}, "created_at[lt]": {times[2]}}, nil},
		{url.Values{"created_at[gte]": {strings.ToLower(times[2])}, "created_at[lt]": {strings.ToLower(times[3])}}, pick(made, 2)},
		{url.Values{"statuses": {"running"}}, pick(made, 1)},
		{url.Values{"agent_version": {"2"}}, newest}, // no effect without agent_id
		{url.Values{"deployment_id": {"depl_x"}}, nil},
		{url.Values{"memory_store_id": {"memstore_x"}}, nil},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, r.ids("/v1/sessions", test.query)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", test.query, diff)
		}
	}
	for _, order := range []string{"desc", "asc"} {
		var pages [][]any
		query := "/v1/sessions?limit=4&order=" + order
		page := r.must("GET", query, "")
		if page.body["prev_page"] != nil {
			t.Error("the first page has a page before it")
		}
		for page.str("next_page") != "" {
			pages = append(pages, page.body["data"].([]any))
			page = r.must("GET", query+"&page="+page.str("next_page"), "")
		}
		for i := len(pages) - 1; i >= 0; i-- {
			page = r.must("GET", query+"&page="+page.str("prev_page"), "")
			if diff := cmp.Diff(pages[i], page.body["data"], timeless); diff != "" {
				t.Errorf("%s: back on page %d:\n%s", order, i, diff)
			}
		}
		if page.body["prev_page"] != nil || page.str("next_page") == "" {
			t.Errorf("%s: back at the first page: prev %v, next %v", order, page.body["prev_page"], page.body["next_page"])
		}
	}
	r.must("POST", "/v1/sessions/"+made[0]+"/archive", "")
	if got := r.ids("/v1/sessions", url.Values{}); len(got) != 8 {
		t.Errorf("%d sessions without the archived one", len(got))
	}
	if diff := cmp.Diff(pick(made, 0), r.ids("/v1/sessions", url.Values{"include_archived": {"true"}, "statuses[]": {"terminated"}})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"limit=0", "limit=1001", "order=up", "agent_id=x&agent_version=0", "statuses[]=odd", "statuses=odd", "created_at[gt]=1", "page=page", "include_archived=2"} {
		if got := r.ask("GET", "/v1/sessions?"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.text)
		}
	}
}

// TestSessionResources: a session has none yet, which is an empty list and no
// missing route.
func TestSessionResources(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	got := r.must("GET", "/v1/sessions/"+id+"/resources?limit=5", "")
	if diff := cmp.Diff(map[string]any{"data": []any{}, "next_page": nil}, got.body); diff != "" {
		t.Error(diff)
	}
	for path, status := range map[string]int{
		"/v1/sessions/sesn_none/resources": 404, "/v1/sessions/" + id + "/resources?limit=0": 400, "/v1/sessions/" + id + "/resources?page=x": 400,
	} {
		if got := r.ask("GET", path, ""); got.status != status {
			t.Errorf("%s: %d %s", path, got.status, got.text)
		}
	}
	if got := r.askAs(r.stranger(), "GET", "/v1/sessions/"+id+"/resources", ""); got.status != 404 {
		t.Errorf("another workspace: %d %s", got.status, got.text)
	}
}

// TestHead: every route that answers GET answers HEAD with the same header and no
// body, streams included.
func TestHead(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	id := r.session("")
	head := func(path string) *http.Response {
		resp, err := http.DefaultClient.Do(r.request("HEAD", path, nil, "X-Api-Key", key))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); err != nil || len(text) > 0 {
			t.Errorf("%s: a body: %q, %v", path, text, err)
		}
		return resp
	}
	for path, contentType := range map[string]string{
		"/v1/environments": "application/json", "/v1/agents?limit=1": "application/json", "/v1/sessions/" + id: "application/json",
		"/v1/sessions/" + id + "/events/stream": "text/event-stream", "/healthz": "text/plain; charset=utf-8",
	} {
		if got := head(path); got.StatusCode != 200 || got.Header.Get("Content-Type") != contentType {
			t.Errorf("%s: %s, %s", path, got.Status, got.Header.Get("Content-Type"))
		}
	}
	for path, status := range map[string]int{"/v1/sessions/sesn_none": 404, "/v1/sessions/" + id + "/archive": 405} {
		if got := head(path); got.StatusCode != status {
			t.Errorf("%s: %s", path, got.Status)
		}
	}
}
