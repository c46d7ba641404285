package httpapi_test

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func policy(name string) map[string]any { return map[string]any{"type": name} }

// TestCreateAgent: exact replies with every default resolved.
func TestCreateAgent(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	toolset := func(enabled bool, permission string, configs ...any) map[string]any {
		return map[string]any{"type": "agent_toolset_20260401", "configs": append([]any{}, configs...),
			"default_config": map[string]any{"enabled": enabled, "permission_policy": policy(permission)}}
	}
	config := func(name string, enabled bool, permission string, more ...any) map[string]any {
		return with(map[string]any{"type": name, "name": name, "enabled": enabled, "permission_policy": policy(permission)}, more...)
	}
	server := map[string]any{"type": "url", "name": "linear", "url": "https://mcp.example.com/sse"}
	tests := []struct {
		name, body string
		want       map[string]any
	}{
		{"plain", `"model":"m"`, nil},
		{"nulls", `"model":"m","description":null,"system":null,"multiagent":null,"execution_identity":null`, nil},
		{"empty", `"model":{"id":"m"},"tools":[],"mcp_servers":[],"skills":[],"metadata":{}`, nil},
		{"texts", `"model":"m","description":"d","system":"s","metadata":{"a":"b"},"execution_identity":{"type":"service_account"}`,
			map[string]any{"description": "d", "system": "s", "metadata": map[string]any{"a": "b"}}},
		{"model", `"model":{"id":"m","speed":"fast","effort":"xhigh","inference_geo":"us"}`,
			map[string]any{"model": map[string]any{"id": "m", "speed": "fast", "effort": policy("xhigh"), "inference_geo": "us"}}},
		{"effort object", `"model":{"id":"m","speed":null,"effort":{"type":"low"},"inference_geo":null}`,
			map[string]any{"model": map[string]any{"id": "m", "speed": "standard", "effort": policy("low")}}},
		{"toolset", `"model":"m","tools":[{"type":"agent_toolset_20260401"}]`, map[string]any{"tools": []any{toolset(true, "always_allow")}}},
		{"toolset settings", `"model":"m","tools":[{"type":"agent_toolset_20260401","default_config":{"enabled":false,"permission_policy":{"type":"auto"}},
			"configs":[{"name":"bash","enabled":true},{"name":"read","type":"read","permission_policy":{"type":"always_ask"}}]}]`,
			map[string]any{"tools": []any{toolset(false, "auto", config("bash", true, "auto"), config("read", false, "always_ask"))}}},
		{"web tools", `"model":"m","tools":[{"type":"agent_toolset_20260401","configs":[
			{"name":"web_fetch","allowed_domains":["docs.example.com"],"max_content_tokens":9,"url_sources":null},
			{"name":"web_search","blocked_domains":["ads.example.com/x"],"user_location":{"type":"approximate","city":"Lund","country":"SE","region":null}}]}]`,
			map[string]any{"tools": []any{toolset(true, "always_allow",
				config("web_fetch", true, "always_allow", "allowed_domains", list("docs.example.com"), "max_content_tokens", 9.0, "url_sources", nil),
				config("web_search", true, "always_allow", "blocked_domains", list("ads.example.com/x"), "user_location", map[string]any{"type": "approximate", "city": "Lund", "country": "SE"}))}}},
		{"mcp", `"model":"m","mcp_servers":[{"type":"url","name":"linear","url":"https://mcp.example.com/sse"}],
			"tools":[{"type":"mcp_toolset","mcp_server_name":"linear","configs":[{"name":"list","permission_policy":{"type":"always_allow"}}]}]`,
			map[string]any{"mcp_servers": []any{server}, "tools": []any{map[string]any{"type": "mcp_toolset", "mcp_server_name": "linear",
				"default_config": map[string]any{"enabled": true, "permission_policy": policy("always_ask")},
				"configs":        []any{map[string]any{"name": "list", "enabled": true, "permission_policy": policy("always_allow")}}}}}},
		{"custom", `"model":"m","tools":[{"type":"custom","name":"get_it","description":"<gets>","input_schema":{"type":"object","properties":{"q":{"type":"string"}},"required":["q"],"x":1.50}}]`,
			map[string]any{"tools": []any{map[string]any{"type": "custom", "name": "get_it", "description": "<gets>",
				"input_schema": map[string]any{"type": "object", "properties": map[string]any{"q": map[string]any{"type": "string"}}, "required": list("q"), "x": 1.5}}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := r.must("POST", "/v1/agents", `{"name":`+quote(test.name)+","+test.body+"}").body
			want := map[string]any{"type": "agent", "id": got["id"], "version": 1.0, "name": test.name, "description": nil, "system": nil,
				"model": map[string]any{"id": "m", "speed": "standard"}, "tools": []any{}, "mcp_servers": []any{}, "skills": []any{},
				"metadata": map[string]any{}, "multiagent": nil, "execution_identity": policy("service_account"),
				"created_at": got["created_at"], "updated_at": got["created_at"], "archived_at": nil}
			maps.Copy(want, test.want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, r.must("GET", "/v1/agents/"+got["id"].(string), "").body); diff != "" {
				t.Errorf("retrieve:\n%s", diff)
			}
		})
	}
}

var badAgents = []struct{ name, body, message string }{
	{"no name", `{"model":"m"}`, "name: Field required"},
	{"no model", `{"name":"x"}`, "model: Field required"},
	{"name empty", `{"name":"","model":"m"}`, "name: String should have at least 1 character"},
	{"name long", `{"name":"` + strings.Repeat("x", 257) + `","model":"m"}`, "name: String should have at most 256 characters"},
	{"model null", `{"name":"x","model":null}`, "model: Input should be a valid string or dictionary"},
	{"model empty", `{"name":"x","model":""}`, "model: String should have at least 1 character"},
	{"speed", `{"name":"x","model":{"id":"m","speed":"warp"}}`, "model.speed: Input should be 'standard' or 'fast'"},
	{"effort", `{"name":"x","model":{"id":"m","effort":"huge"}}`, "model.effort: Input should be 'low', 'medium', 'high', 'xhigh' or 'max'"},
	{"effort object", `{"name":"x","model":{"id":"m","effort":{"type":"low","x":1}}}`, "model.effort.x: Extra inputs are not permitted"},
	{"model unknown", `{"name":"x","model":{"id":"m","temperature":1}}`, "model.temperature: Extra inputs are not permitted"},
	{"description", `{"name":"x","model":"m","description":"` + strings.Repeat("x", 2049) + `"}`, "description: String should have at most 2048 characters"},
	{"system", `{"name":"x","model":"m","system":"` + strings.Repeat("x", 100001) + `"}`, "system: String should have at most 100000 characters"},
	{"unknown", `{"name":"x","model":"m","temperature":1}`, "temperature: Extra inputs are not permitted"},
	{"skills", `{"name":"x","model":"m","skills":[{"type":"anthropic","skill_id":"xlsx"}]}`, "skills: not supported yet by this server"},
	{"multiagent", `{"name":"x","model":"m","multiagent":{"type":"coordinator","agents":["a"]}}`, "multiagent: not supported yet by this server"},
	{"aws role", `{"name":"x","model":"m","execution_identity":{"type":"aws_role","role_arn":"arn:aws:iam::123456789012:role/x"}}`, "execution_identity.type: 'aws_role' is not supported yet by this server; use 'service_account'"},
	{"metadata pairs", `{"name":"x","model":"m","metadata":{` + pairs(17) + `}}`, "metadata: Dictionary should have at most 16 items"},
	{"metadata key", `{"name":"x","model":"m","metadata":{"` + strings.Repeat("k", 65) + `":""}}`, "metadata key: String should have at most 64 characters"},
	{"metadata value", `{"name":"x","model":"m","metadata":{"k":"` + strings.Repeat("k", 513) + `"}}`, "metadata.k: String should have at most 512 characters"},
	{"tool type", tools(`{"type":"bash"}`), "tools[0].type: Input should be 'agent_toolset_20260401', 'mcp_toolset' or 'custom'"},
	{"tool null", tools(`null`), "tools[0]: Input should be a valid dictionary"},
	{"two toolsets", tools(`{"type":"agent_toolset_20260401"},{"type":"agent_toolset_20260401"}`), "tools[1].type: Only one 'agent_toolset_20260401' is allowed"},
	{"toolset unknown", tools(`{"type":"agent_toolset_20260401","x":1}`), "tools[0].x: Extra inputs are not permitted"},
	{"config name", builtin(`{"name":"shell"}`), "tools[0].configs[0].name: Input should be 'bash', 'edit', 'read', 'write', 'glob', 'grep', 'web_fetch' or 'web_search'"},
	{"config type", builtin(`{"name":"bash","type":"read"}`), "tools[0].configs[0].type: Input should be 'bash'"},
	{"config twice", builtin(`{"name":"bash"},{"name":"bash"}`), "tools[0].configs[1].name: Tool names must be unique in a toolset"},
	{"policy", builtin(`{"name":"bash","permission_policy":{"type":"never"}}`), "tools[0].configs[0].permission_policy.type: Input should be 'always_allow', 'always_ask' or 'auto'"},
	{"foreign setting", builtin(`{"name":"bash","allowed_domains":["example.com"]}`), "tools[0].configs[0].allowed_domains: Extra inputs are not permitted"},
	{"foreign setting of search", builtin(`{"name":"web_search","max_content_tokens":1}`), "tools[0].configs[0].max_content_tokens: Extra inputs are not permitted"},
	{"both lists", builtin(`{"name":"web_fetch","allowed_domains":["a.example.com"],"blocked_domains":["b.example.com"]}`), "tools[0].configs[0]: allowed_domains and blocked_domains cannot be combined"},
	{"empty domains", builtin(`{"name":"web_fetch","allowed_domains":[]}`), "tools[0].configs[0].allowed_domains: List should have between 1 and 64 items; omit the field for none"},
	{"domain with path", builtin(`{"name":"web_fetch","allowed_domains":["example.com/x"]}`), `tools[0].configs[0].allowed_domains[0]: Entries must be plain hostnames like "docs.example.com"`},
	{"address with port", builtin(`{"name":"web_fetch","blocked_domains":["203.0.113.5:80"]}`), `tools[0].configs[0].blocked_domains[0]: Entries must be plain hostnames like "docs.example.com"`},
	{"address with zone", builtin(`{"name":"web_fetch","blocked_domains":["fe80::1%eth0"]}`), `tools[0].configs[0].blocked_domains[0]: Entries must be plain hostnames like "docs.example.com"`},
	{"domain with scheme", builtin(`{"name":"web_search","allowed_domains":["https://example.com"]}`), `tools[0].configs[0].allowed_domains[0]: Entries must be plain hostnames like "docs.example.com"`},
	{"tokens", builtin(`{"name":"web_fetch","max_content_tokens":0}`), "tools[0].configs[0].max_content_tokens: Input should be between 1 and 2147483647"},
	{"tokens float", builtin(`{"name":"web_fetch","max_content_tokens":1.5}`), "tools[0].configs[0].max_content_tokens: Input should be a valid integer"},
	{"url sources", builtin(`{"name":"web_fetch","url_sources":{"user_input":"none"}}`), "tools[0].configs[0].url_sources: not supported yet by this server"},
	{"country", builtin(`{"name":"web_search","user_location":{"type":"approximate","country":"Sweden"}}`), "tools[0].configs[0].user_location.country: String should match pattern '^[A-Z]{2}$'"},
	{"custom name", tools(`{"type":"custom","name":"a b","description":"d","input_schema":{"type":"object"}}`), "tools[0].name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'"},
	{"custom twice", tools(custom("a") + "," + custom("a")), "tools[1].name: Tool names must be unique"},
	{"custom built-in", tools(`{"type":"agent_toolset_20260401"},` + custom("bash")), `tools: "bash" is a built-in tool and cannot be the name of a custom one`},
	{"custom description", tools(`{"type":"custom","name":"a","description":"","input_schema":{"type":"object"}}`), "tools[0].description: String should have at least 1 character"},
	{"schema missing", tools(`{"type":"custom","name":"a","description":"d"}`), "tools[0].input_schema: Field required"},
	{"schema type", tools(`{"type":"custom","name":"a","description":"d","input_schema":{"type":"string"}}`), "tools[0].input_schema.type: Input should be 'object'"},
	{"schema properties", tools(`{"type":"custom","name":"a","description":"d","input_schema":{"type":"object","properties":[]}}`), "tools[0].input_schema.properties: Input should be a valid dictionary"},
	{"schema required", tools(`{"type":"custom","name":"a","description":"d","input_schema":{"type":"object","required":[1]}}`), "tools[0].input_schema.required[0]: Input should be a valid string"},
	{"too many tools", tools(strings.TrimSuffix(strings.Repeat(custom("x")+",", 257), ",")), "tools: At most 256 tools are allowed across all toolsets"},
	{"mcp unknown server", tools(`{"type":"mcp_toolset","mcp_server_name":"gone"}`), `tools[0].mcp_server_name: "gone" is not the name of one of mcp_servers`},
	{"mcp unused", `{"name":"x","model":"m","mcp_servers":[` + mcp("a", "https://a.example.com") + `]}`, `mcp_servers[0].name: "a" is not used by an mcp_toolset in tools`},
	{"mcp twice", `{"name":"x","model":"m","mcp_servers":[` + mcp("a", "https://a.example.com") + `,` + mcp("a", "https://b.example.com") + `]}`, "mcp_servers[1].name: MCP server names must be unique"},
	{"mcp two sets", `{"name":"x","model":"m","mcp_servers":[` + mcp("a", "https://a.example.com") + `],"tools":[{"type":"mcp_toolset","mcp_server_name":"a"},{"type":"mcp_toolset","mcp_server_name":"a"}]}`, `tools[1].mcp_server_name: "a" has an mcp_toolset already`},
	{"mcp type", `{"name":"x","model":"m","mcp_servers":[{"type":"stdio","name":"a","url":"https://a.example.com"}]}`, "mcp_servers[0].type: Input should be 'url'"},
	{"mcp url", `{"name":"x","model":"m","mcp_servers":[` + mcp("a", "ftp://a.example.com") + `]}`, "mcp_servers[0].url: Input should be an http or https URL with a host and without credentials"},
	{"mcp credentials", `{"name":"x","model":"m","mcp_servers":[` + mcp("a", "https://u:p@a.example.com") + `]}`, "mcp_servers[0].url: Input should be an http or https URL with a host and without credentials"},
	{"mcp many", `{"name":"x","model":"m","mcp_servers":[` + strings.TrimSuffix(strings.Repeat(mcp("a", "https://a.example.com")+",", 21), ",") + `]}`, "mcp_servers: List should have at most 20 items"},
}

func pairs(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"k%d":"v"`, i))
	}
	return strings.Join(all, ",")
}

func tools(list string) string { return `{"name":"x","model":"m","tools":[` + list + `]}` }
func builtin(config string) string {
	return tools(`{"type":"agent_toolset_20260401","configs":[` + config + `]}`)
}
func mcp(name, url string) string { return `{"type":"url","name":"` + name + `","url":"` + url + `"}` }
func custom(name string) string {
	return `{"type":"custom","name":"` + name + `","description":"d","input_schema":{"type":"object"}}`
}

func TestAgentRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.must("POST", "/v1/agents", `{"name":"kept","model":"m"}`)
	path := "/v1/agents/" + before.str("id")
	for _, test := range badAgents {
		if got := r.ask("POST", "/v1/agents", test.body); got.status != 400 || got.message() != test.message {
			t.Errorf("create %s: %d %s\nwant %s", test.name, got.status, got.text, test.message)
		}
		if slices.Contains([]string{"no name", "no model"}, test.name) {
			continue
		}
		if got := r.ask("POST", path, test.body); got.status != 400 || got.message() != test.message {
			t.Errorf("update %s: %d %s\nwant %s", test.name, got.status, got.text, test.message)
		}
	}
	for body, message := range map[string]string{
		`{"name":null}`:  "name: Input should be a valid string",
		`{"version":0}`:  "version: Input should be greater than or equal to 1",
		`{"version":""}`: "version: Input should be a valid integer",
	} {
		if got := r.ask("POST", path, body); got.status != 400 || got.message() != message {
			t.Errorf("update %s: %d %s", body, got.status, got.text)
		}
	}
	if diff := cmp.Diff(before.body, r.must("GET", path, "").body); diff != "" {
		t.Errorf("a refused update changed the agent:\n%s", diff)
	}
}

// TestUpdateAgent: versions and the rules of 8.2.
func TestUpdateAgent(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	start := `"model":{"id":"m","speed":"fast"},"description":"d","system":"s","metadata":{"a":"1","b":""},
		"mcp_servers":[` + mcp("linear", "https://mcp.example.com") + `],"tools":[{"type":"mcp_toolset","mcp_server_name":"linear"}]`
	tests := []struct {
		name, body string
		want       map[string]any // empty: no new version
	}{
		{"empty", `{}`, nil},
		{"same", `{"name":"agent","description":"d","metadata":{"a":"1"},"version":1}`, nil},
		{"nulls that keep", `{"metadata":null,"multiagent":null,"skills":null,"execution_identity":null}`, nil},
		{"name", `{"name":"new"}`, map[string]any{"name": "new"}},
		{"model whole", `{"model":"n"}`, map[string]any{"model": map[string]any{"id": "n", "speed": "standard"}}},
		{"description null", `{"description":null}`, map[string]any{"description": nil}},
		{"description empty", `{"description":""}`, map[string]any{"description": nil}},
		{"system null", `{"system":null,"version":1}`, map[string]any{"system": nil}},
		{"system empty", `{"system":""}`, map[string]any{"system": nil}},
		{"metadata", `{"metadata":{"a":null,"c":"3"}}`, map[string]any{"metadata": map[string]any{"b": "", "c": "3"}}},
		{"tools null", `{"tools":null,"mcp_servers":null}`, map[string]any{"tools": []any{}, "mcp_servers": []any{}}},
		{"tools empty", `{"tools":[],"mcp_servers":[]}`, map[string]any{"tools": []any{}, "mcp_servers": []any{}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := r.must("POST", "/v1/agents", `{"name":"agent",`+start+`}`)
			path := "/v1/agents/" + before.str("id")
			got := r.must("POST", path, test.body)
			want := maps.Clone(before.body)
			maps.Copy(want, test.want)
			versions := 1
			if len(test.want) > 0 {
				versions = 2
				want["version"], want["updated_at"] = 2.0, got.str("updated_at")
			}
			if diff := cmp.Diff(want, got.body); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got.body, r.must("GET", path, "").body); diff != "" {
				t.Errorf("retrieve:\n%s", diff)
			}
			old := maps.Clone(before.body)
			if versions == 2 {
				old["name"] = r.must("GET", path+"?version=1", "").body["name"] // the agent's, not the version's
			}
			if diff := cmp.Diff(old, r.must("GET", path+"?version=1", "").body); diff != "" {
				t.Errorf("version 1:\n%s", diff)
			}
			if got := len(r.must("GET", path+"/versions", "").body["data"].([]any)); got != versions {
				t.Errorf("%d versions, want %d", got, versions)
			}
		})
	}
	t.Run("references", func(t *testing.T) {
		id := r.must("POST", "/v1/agents", `{"name":"agent",`+start+`}`).str("id")
		got := r.ask("POST", "/v1/agents/"+id, `{"tools":[]}`)
		if got.status != 400 || got.message() != `mcp_servers[0].name: "linear" is not used by an mcp_toolset in tools` {
			t.Errorf("%d %s", got.status, got.text)
		}
	})
	t.Run("expected version", func(t *testing.T) {
		id := r.must("POST", "/v1/agents", `{"name":"agent","model":"m"}`).str("id")
		r.must("POST", "/v1/agents/"+id, `{"name":"b","version":1}`)
		conflict(t, r.ask("POST", "/v1/agents/"+id, `{"name":"c","version":1}`), "invalid_request_error")
		conflict(t, r.askAs(r.sandBase(), "POST", "/v1/agents/"+id, `{"name":"c","version":3}`), "conflict")
		r.must("POST", "/v1/agents/"+id, `{"name":"c","version":2}`)
	})
}

// TestAgentLists: versions, archive, filters and limits.
func TestAgentLists(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var made []string
	var times []string
	for i := range 5 {
		a := r.must("POST", "/v1/agents", fmt.Sprintf(`{"name":"a%d","model":"m"}`, i))
		made, times = append(made, a.str("id")), append(times, a.str("created_at"))
	}
	slices.Reverse(made)
	slices.Reverse(times)
	if diff := cmp.Diff(made, r.ids("/v1/agents", url.Values{"limit": {"2"}})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(made[1:4], r.ids("/v1/agents", url.Values{"limit": {"2"}, "created_at[gte]": {times[3]}, "created_at[lte]": {times[1]}})); diff != "" {
		t.Error(diff)
	}
	path := "/v1/agents/" + made[0]
	for i := range 4 {
		r.must("POST", path, fmt.Sprintf(`{"description":"%d"}`, i))
	}
	var versions []any
	page := ""
	for range 3 {
		got := r.must("GET", path+"/versions?limit=2&page="+page, "")
		for _, v := range got.body["data"].([]any) {
			versions = append(versions, v.(map[string]any)["version"])
		}
		page = got.str("next_page")
	}
	if diff := cmp.Diff([]any{5.0, 4.0, 3.0, 2.0, 1.0}, versions); diff != "" || page != "" {
		t.Errorf("versions, then %q:\n%s", page, diff)
	}
	first := r.must("POST", path+"/archive", "")
	if first.str("archived_at") == "" {
		t.Error(first.text)
	}
	if diff := cmp.Diff(first.body, r.must("POST", path+"/archive", "").body); diff != "" {
		t.Error(diff)
	}
	if got := r.ask("POST", path, `{"name":"x"}`); got.status != 400 || got.message() != "Agent "+made[0]+" is archived." {
		t.Errorf("%d %s", got.status, got.text)
	}
	if diff := cmp.Diff(made[1:], r.ids("/v1/agents", url.Values{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(made, r.ids("/v1/agents", url.Values{"include_archived": {"true"}})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"?limit=101", "?limit=0", "?created_at[gte]=yesterday", "/" + made[0] + "?version=0", "/" + made[0] + "?version=x",
		"/" + made[0] + "/versions?limit=101", "/" + made[0] + "/versions?page=page"} {
		if got := r.ask("GET", "/v1/agents"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.text)
		}
	}
	for _, gone := range []string{"/x", "/x/versions", "/" + made[0] + "?version=77"} {
		if got := r.ask("GET", "/v1/agents"+gone, ""); got.status != 404 {
			t.Errorf("%s: %d %s", gone, got.status, got.text)
		}
	}
	if got := r.ask("DELETE", path, ""); got.status != 405 || got.message() != "Method Not Allowed" {
		t.Errorf("%d %s", got.status, got.text)
	}
}
