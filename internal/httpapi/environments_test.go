package httpapi_test

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	environmentID = regexp.MustCompile(`^env_01[0-9A-Za-z]{22}$`)
	timestamp     = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
)

func emptyPackages() map[string]any {
	return map[string]any{"type": "packages", "apt": []any{}, "cargo": []any{}, "gem": []any{}, "go": []any{}, "npm": []any{}, "pip": []any{}}
}

func with(m map[string]any, pairs ...any) map[string]any {
	m = maps.Clone(m)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	return m
}

func list(items ...string) []any {
	l := []any{}
	for _, item := range items {
		l = append(l, item)
	}
	return l
}

// TestCreateEnvironment: exact replies, defaults and normalisation.
func TestCreateEnvironment(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	unrestricted := map[string]any{"type": "unrestricted"}
	cloud := func(networking, packages map[string]any, more ...any) map[string]any {
		return with(map[string]any{"type": "cloud", "networking": networking, "packages": packages}, more...)
	}
	plain := cloud(unrestricted, emptyPackages())
	limited := func(hosts []any, mcp, managers bool) map[string]any {
		return map[string]any{"type": "limited", "allowed_hosts": hosts, "allow_mcp_servers": mcp, "allow_package_managers": managers}
	}
	tests := []struct {
		name, body string // the body without its name
		want       map[string]any
	}{
		{"name alone", ``, map[string]any{"config": plain}},
		{"config null", `"config":null`, map[string]any{"config": plain}},
		{"everything null", `"description":null,"config":null,"scope":null`, map[string]any{"config": plain}},
		{"cloud alone", `"config":{"type":"cloud"}`, map[string]any{"config": plain}},
		{"parts null", `"config":{"type":"cloud","networking":null,"packages":null,"base_template":null}`, map[string]any{"config": plain}},
		{"description empty", `"description":""`, map[string]any{"config": plain, "description": ""}},
		{"description", `"description":"for λ"`, map[string]any{"config": plain, "description": "for λ"}},
		{"scope", `"scope":"organization"`, map[string]any{"config": plain}},
		{"metadata", `"metadata":{"team":"a","":"odd","e":""}`, map[string]any{"config": plain, "metadata": map[string]any{"team": "a", "": "odd", "e": ""}}},
		{"unrestricted", `"config":{"type":"cloud","networking":{"type":"unrestricted"}}`, map[string]any{"config": plain}},
		{"limited alone", `"config":{"type":"cloud","networking":{"type":"limited"}}`, map[string]any{"config": cloud(limited(list(), false, false), emptyPackages())}},
		{"limited nulls", `"config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":null,"allow_mcp_servers":null,"allow_package_managers":null}}`,
			map[string]any{"config": cloud(limited(list(), false, false), emptyPackages())}},
		{"limited empty", `"config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":[]}}`, map[string]any{"config": cloud(limited(list(), false, false), emptyPackages())}},
		{"limited whole", `"config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":["EXAMPLE.COM","*.example.org","example.com","example.com"],"allow_mcp_servers":true,"allow_package_managers":true}}`,
			map[string]any{"config": cloud(limited(list("EXAMPLE.COM", "*.example.org", "example.com", "example.com"), true, true), emptyPackages())}},
		{"packages", `"config":{"type":"cloud","packages":{"type":"packages","apt":["graphviz","ffmpeg"],"cargo":["hyperfine@1.18.0"],"gem":["rails:7.1.0"],"go":["golang.org/x/tools/cmd/goimports@latest"],"npm":["express@4.18.0"],"pip":["sqlalchemy==2.0.30"]}}`,
			map[string]any{"config": cloud(unrestricted, with(emptyPackages(), "apt", list("graphviz", "ffmpeg"), "cargo", list("hyperfine@1.18.0"),
				"gem", list("rails:7.1.0"), "go", list("golang.org/x/tools/cmd/goimports@latest"), "npm", list("express@4.18.0"), "pip", list("sqlalchemy==2.0.30")))}},
		{"packages in part", `"config":{"type":"cloud","packages":{"pip":["pandas"],"npm":null,"apt":[]}}`,
			map[string]any{"config": cloud(unrestricted, with(emptyPackages(), "pip", list("pandas")))}},
		{"no list named", `"config":{"type":"cloud","networking":{"type":"limited"},"packages":{"pip":["pandas"]}}`,
			map[string]any{"config": cloud(limited(list(), false, false), with(emptyPackages(), "pip", list("pandas")))}},
		{"base template", `"config":{"type":"cloud","base_template":"code_interpreter"}`, map[string]any{"config": with(plain, "base_template", "code_interpreter")}},
		{"self_hosted", `"config":{"type":"self_hosted"}`, map[string]any{"config": map[string]any{"type": "self_hosted"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			body := `{"name":` + quote(test.name)
			if test.body != "" {
				body += "," + test.body
			}
			got := r.must("POST", "/v1/environments", body+"}").body
			id, created := fmt.Sprint(got["id"]), fmt.Sprint(got["created_at"])
			if !environmentID.MatchString(id) || !timestamp.MatchString(created) || got["updated_at"] != created {
				t.Errorf("id %s, created %s, updated %s", id, created, got["updated_at"])
			}
			want := map[string]any{"id": id, "type": "environment", "name": test.name, "description": nil, "metadata": map[string]any{},
				"scope": "organization", "archived_at": nil, "created_at": created, "updated_at": created}
			maps.Copy(want, test.want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, r.must("GET", "/v1/environments/"+id, "").body); diff != "" {
				t.Errorf("retrieve (-create +get):\n%s", diff)
			}
		})
	}
}

// badEnvironments are refused by create with exactly this message, and by
// update where the field exists there.
var badEnvironments = []struct{ name, body, message string }{
	{"no body", ``, "Request body is required"},
	{"blank body", `  `, "Request body is required"},
	{"null", `null`, "Request body must be a JSON object"},
	{"list", `[]`, "Request body must be a JSON object"},
	{"trailing data", `{"name":"x"} {}`, "Request body is not valid JSON at byte 14: invalid character '{' after top-level value"},
	{"cut", `{"name":"x"`, "Request body is not valid JSON at byte 11: unexpected end of JSON input"},
	{"invalid UTF-8", "{\"name\":\"\xff\"}", "Request body is not valid UTF-8"},
	{"half a pair", `{"name":"\ud800"}`, "Request body holds half of a surrogate pair at byte 9"},
	{"deep", `{"name":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "Request body nests deeper than 100 levels"},
	{"name twice", `{"name":"x","name":"y"}`, "name: Field is given more than once"},
	{"nested twice", `{"name":"x","metadata":{"a":"1","a":"2"}}`, "metadata.a: Field is given more than once"},
	{"twice by escape", `{"name":"x","n\u0061me":"y"}`, "name: Field is given more than once"},
	{"unknown", `{"name":"x","color":"red"}`, "color: Extra inputs are not permitted"},
	{"case matters", `{"Name":"x"}`, "Name: Extra inputs are not permitted"},
	{"name missing", `{}`, "name: Field required"},
	{"name null", `{"name":null}`, "name: Input should be a valid string"},
	{"name number", `{"name":1}`, "name: Input should be a valid string"},
	{"name empty", `{"name":""}`, "name: String should have at least 1 character"},
	{"name long", `{"name":"` + strings.Repeat("é", 257) + `"}`, "name: String should have at most 256 characters"},
	{"description list", `{"name":"x","description":[]}`, "description: Input should be a valid string"},
	{"description long", `{"name":"x","description":"` + strings.Repeat("x", 1025) + `"}`, "description: String should have at most 1024 characters"},
	{"metadata list", `{"name":"x","metadata":[]}`, "metadata: Input should be a valid dictionary"},
	{"metadata number", `{"name":"x","metadata":{"a":1}}`, "metadata.a: Input should be a valid string"},
	{"metadata nested", `{"name":"x","metadata":{"a":{"b":"c"}}}`, "metadata.a: Input should be a valid string"},
	{"too large as a whole", `{"name":"x","metadata":{"a":"` + strings.Repeat("x", 65536) + `"}}`, "The environment is too large: 65921 bytes as JSON, at most 65536 are allowed"},
	{"scope account", `{"name":"x","scope":"account"}`, "scope: Only 'organization' is supported"},
	{"scope other", `{"name":"x","scope":"team"}`, "scope: Input should be 'organization' or 'account'"},
	{"config string", `{"name":"x","config":"cloud"}`, "config: Input should be a valid dictionary"},
	{"config untyped", `{"name":"x","config":{}}`, "config.type: Field required"},
	{"config type", `{"name":"x","config":{"type":"moon"}}`, "config.type: Input should be 'cloud' or 'self_hosted'"},
	{"config type number", `{"name":"x","config":{"type":1}}`, "config.type: Input should be a valid string"},
	{"config unknown", `{"name":"x","config":{"type":"cloud","init_script":"x"}}`, "config.init_script: Extra inputs are not permitted"},
	{"self_hosted more", `{"name":"x","config":{"type":"self_hosted","networking":{"type":"unrestricted"}}}`, "config.networking: Extra inputs are not permitted"},
	{"template", `{"name":"x","config":{"type":"cloud","base_template":"hermes"}}`, "config.base_template: There is no template of this name. The templates are: base, code_interpreter, slim"},
	{"template empty", `{"name":"x","config":{"type":"cloud","base_template":""}}`, "config.base_template: There is no template of this name. The templates are: base, code_interpreter, slim"},
	{"networking type", `{"name":"x","config":{"type":"cloud","networking":{"type":"none"}}}`, "config.networking.type: Input should be 'unrestricted' or 'limited'"},
	{"unrestricted flags", `{"name":"x","config":{"type":"cloud","networking":{"type":"unrestricted","allow_mcp_servers":true}}}`, "config.networking.allow_mcp_servers: Extra inputs are not permitted"},
	{"unrestricted managers", `{"name":"x","config":{"type":"cloud","networking":{"type":"unrestricted","allow_package_managers":false}}}`, "config.networking.allow_package_managers: Extra inputs are not permitted"},
	{"limited unknown", `{"name":"x","config":{"type":"cloud","networking":{"type":"limited","hosts":[]}}}`, "config.networking.hosts: Extra inputs are not permitted"},
	{"flag string", `{"name":"x","config":{"type":"cloud","networking":{"type":"limited","allow_mcp_servers":"true"}}}`, "config.networking.allow_mcp_servers: Input should be a valid boolean"},
	{"hosts string", `{"name":"x","config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":"example.com"}}}`, "config.networking.allowed_hosts: Input should be a valid list"},
	{"hosts null item", `{"name":"x","config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":["a.example.com",null]}}}`, "config.networking.allowed_hosts[1]: Input should be a valid string"},
	// Recorded texts.
	{"host scheme", hostEntry("https://example.com"), "`allowed_hosts` entry \"https://example.com\" contains a URL scheme. Entries must be bare hostnames like \"google.com\"."},
	{"host port", hostEntry("example.com:443"), "`allowed_hosts` entry \"example.com:443\" contains a port. Entries must be bare hostnames without ports."},
	// Atoll's own.
	{"host path", hostEntry("example.com/x"), "`allowed_hosts` entry \"example.com/x\" contains a path. Entries must be bare hostnames without paths."},
	{"host IPv4", hostEntry("192.0.2.1"), "`allowed_hosts` entry \"192.0.2.1\" contains an IP address. Entries must be hostnames."},
	{"host IPv6", hostEntry("2001:db8::1"), "`allowed_hosts` entry \"2001:db8::1\" contains an IP address. Entries must be hostnames."},
	{"host star", hostEntry("*"), "`allowed_hosts` entry \"*\" contains a bare wildcard. A wildcard is \"*.\" and a hostname, like \"*.google.com\"."},
	{"packages list", `{"name":"x","config":{"type":"cloud","packages":[]}}`, "config.packages: Input should be a valid dictionary"},
	{"packages manager", `{"name":"x","config":{"type":"cloud","packages":{"brew":["x"]}}}`, "config.packages.brew: Extra inputs are not permitted"},
	{"packages type", `{"name":"x","config":{"type":"cloud","packages":{"type":"pkgs"}}}`, "config.packages.type: Input should be 'packages'"},
	{"packages string", `{"name":"x","config":{"type":"cloud","packages":{"pip":"pandas"}}}`, "config.packages.pip: Input should be a valid list"},
	{"packages number", `{"name":"x","config":{"type":"cloud","packages":{"pip":["a",2]}}}`, "config.packages.pip[1]: Input should be a valid string"},
}

func hostEntry(entry string) string {
	return `{"name":"x","config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":["ok.example.com",` + quote(entry) + `]}}}`
}

func TestCreateEnvironmentRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	sb := r.sandBase()
	for _, test := range badEnvironments {
		t.Run(test.name, func(t *testing.T) {
			got := r.ask("POST", "/v1/environments", test.body)
			if got.status != 400 || got.str("error", "type") != "invalid_request_error" || got.message() != test.message {
				t.Errorf("got %d %s\nwant 400 invalid_request_error %s", got.status, got.text, test.message)
			}
			got = r.askAs(sb, "POST", "/v1/environments", test.body)
			if got.status != 400 || got.str("error", "type") != "invalid_request" || got.message() != test.message {
				t.Errorf("SandBase: got %d %s\nwant 400 invalid_request %s", got.status, got.text, test.message)
			}
		})
	}
	if data := r.must("GET", "/v1/environments", "").body["data"].([]any); len(data) != 0 {
		t.Errorf("a refused create left %d environments", len(data))
	}
}

// TestPackageGrammar: what a manager might take for an option, a credential or
// a command is refused with the place of the entry; the grammar itself is
// tested in internal/image.
func TestPackageGrammar(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, manager := range []string{"apt", "cargo", "gem", "go", "npm", "pip"} {
		for _, entry := range []string{"", " ", "--index-url", "-e .", "a; rm -rf /", "$(id)", "https://u:p@example.com/x.git", "a\nb"} {
			got := r.ask("POST", "/v1/environments", fmt.Sprintf(`{"name":"x","config":{"type":"cloud","packages":{%q:[%s]}}}`, manager, quote(entry)))
			if got.status != 400 || !strings.HasPrefix(got.message(), "config.packages."+manager+"[0]: ") || strings.Contains(got.message(), "u:p@") {
				t.Errorf("%s %q: %d %s", manager, entry, got.status, got.text)
			}
		}
	}
}

// TestUpdateEnvironmentRefused: what create refuses update refuses too, and a
// refused update changes nothing.
func TestUpdateEnvironmentRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	before := r.must("POST", "/v1/environments", `{"name":"kept","config":{"type":"cloud","networking":{"type":"limited"}}}`)
	path := "/v1/environments/" + before.str("id")
	for _, test := range badEnvironments {
		if slices.Contains([]string{"name missing", "name null", "self_hosted more", "too large as a whole"}, test.name) {
			continue // legal or different in an update
		}
		got := r.ask("POST", path, test.body)
		if got.status != 400 || got.message() != test.message {
			t.Errorf("%s: got %d %s\nwant 400 %s", test.name, got.status, got.text, test.message)
		}
	}
	if diff := cmp.Diff(before.body, r.must("GET", path, "").body); diff != "" {
		t.Errorf("a refused update changed the environment:\n%s", diff)
	}
}

// TestUpdateEnvironment: the merge rules, each from the same start.
func TestUpdateEnvironment(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	start := `"description":"d","metadata":{"a":"1","b":"2"},"config":{"type":"cloud","base_template":"slim",
		"networking":{"type":"limited","allowed_hosts":["a.example.com"],"allow_mcp_servers":true,"allow_package_managers":true},
		"packages":{"pip":["pandas"],"npm":["express"]}}`
	startNet := map[string]any{"type": "limited", "allowed_hosts": list("a.example.com"), "allow_mcp_servers": true, "allow_package_managers": true}
	startPackages := with(emptyPackages(), "pip", list("pandas"), "npm", list("express"))
	startConfig := map[string]any{"type": "cloud", "base_template": "slim", "networking": startNet, "packages": startPackages}
	net := func(text string) string { return `{"config":{"type":"cloud","networking":` + text + `}}` }
	packages := func(text string) string { return `{"config":{"type":"cloud","packages":` + text + `}}` }
	tests := []struct {
		name, body string
		want       map[string]any // empty: nothing changes, updated_at included
		builds     bool           // the config changed
	}{
		{"empty", `{}`, nil, false},
		{"all null but description", `{"name":null,"metadata":null,"config":null,"scope":null}`, nil, false},
		{"same values", `{"description":"d","metadata":{"a":"1"},"scope":"organization"}`, nil, false},
		{"description null", `{"description":null}`, map[string]any{"description": nil}, false},
		{"description empty", `{"description":""}`, map[string]any{"description": ""}, false},
		{"metadata set", `{"metadata":{"c":"3","a":"9"}}`, map[string]any{"metadata": map[string]any{"a": "9", "b": "2", "c": "3"}}, false},
		{"metadata null deletes", `{"metadata":{"a":null}}`, map[string]any{"metadata": map[string]any{"b": "2"}}, false},
		{"metadata empty deletes", `{"metadata":{"a":""}}`, map[string]any{"metadata": map[string]any{"b": "2"}}, false},
		{"metadata delete absent", `{"metadata":{"zz":null,"yy":""}}`, nil, false},
		{"metadata empty map", `{"metadata":{}}`, nil, false},
		{"type alone", `{"config":{"type":"cloud"}}`, nil, false},
		{"parts null", `{"config":{"type":"cloud","networking":null,"packages":null,"base_template":null}}`, nil, false},
		{"template", `{"config":{"type":"cloud","base_template":"base"}}`, map[string]any{"config": with(startConfig, "base_template", "base")}, true},
		{"limited keeps", net(`{"type":"limited"}`), nil, false},
		{"limited nulls keep", net(`{"type":"limited","allowed_hosts":null,"allow_mcp_servers":null,"allow_package_managers":null}`), nil, false},
		{"hosts replaced", net(`{"type":"limited","allowed_hosts":["b.example.com"]}`), map[string]any{"config": with(startConfig, "networking", with(startNet, "allowed_hosts", list("b.example.com")))}, true},
		{"hosts cleared", net(`{"type":"limited","allowed_hosts":[]}`), map[string]any{"config": with(startConfig, "networking", with(startNet, "allowed_hosts", list()))}, true},
		{"flag", net(`{"type":"limited","allow_mcp_servers":false}`), map[string]any{"config": with(startConfig, "networking", with(startNet, "allow_mcp_servers", false))}, true},
		{"to unrestricted", net(`{"type":"unrestricted"}`), map[string]any{"config": with(startConfig, "networking", map[string]any{"type": "unrestricted"})}, true},
		{"packages empty object", packages(`{}`), nil, false},
		{"list replaced", packages(`{"pip":["numpy"]}`), map[string]any{"config": with(startConfig, "packages", with(startPackages, "pip", list("numpy")))}, true},
		{"list cleared", packages(`{"pip":[]}`), map[string]any{"config": with(startConfig, "packages", with(startPackages, "pip", list()))}, true},
		{"list null keeps", packages(`{"pip":null,"apt":["jq"]}`), map[string]any{"config": with(startConfig, "packages", with(startPackages, "apt", list("jq")))}, true},
		{"name", `{"name":"renamed"}`, map[string]any{"name": "renamed"}, false},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := r.must("POST", "/v1/environments", fmt.Sprintf(`{"name":"start %d",%s}`, i, start))
			r.runtime.take()
			got := r.must("POST", "/v1/environments/"+before.str("id"), test.body)
			want := maps.Clone(before.body)
			maps.Copy(want, test.want)
			if len(test.want) > 0 {
				if got.str("updated_at") <= before.str("updated_at") {
					t.Errorf("updated_at %s is not after %s", got.str("updated_at"), before.str("updated_at"))
				}
				want["updated_at"] = got.str("updated_at")
			}
			if diff := cmp.Diff(want, got.body); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got.body, r.must("GET", "/v1/environments/"+before.str("id"), "").body); diff != "" {
				t.Errorf("stored (-reply +get):\n%s", diff)
			}
			if told := len(r.runtime.take()) > 0; told != test.builds {
				t.Errorf("runtime told: %t, want %t", told, test.builds)
			}
		})
	}
	t.Run("unrestricted to limited starts from the defaults", func(t *testing.T) {
		id := r.must("POST", "/v1/environments", `{"name":"open"}`).str("id")
		got := r.must("POST", "/v1/environments/"+id, net(`{"type":"limited","allow_mcp_servers":true}`))
		want := map[string]any{"type": "limited", "allowed_hosts": list(), "allow_mcp_servers": true, "allow_package_managers": false}
		if diff := cmp.Diff(want, got.body["config"].(map[string]any)["networking"]); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("too large by merging", func(t *testing.T) {
		id := r.must("POST", "/v1/environments", `{"name":"big","metadata":{"a":"`+strings.Repeat("x", 60000)+`"}}`).str("id")
		got := r.ask("POST", "/v1/environments/"+id, `{"metadata":{"b":"`+strings.Repeat("x", 10000)+`"}}`)
		if got.status != 400 || !strings.HasPrefix(got.message(), "The environment is too large: ") {
			t.Errorf("got %d %s", got.status, got.text)
		}
	})
	for _, types := range [][2]string{{"cloud", "self_hosted"}, {"self_hosted", "cloud"}} {
		t.Run("type change from "+types[0], func(t *testing.T) {
			id := r.must("POST", "/v1/environments", fmt.Sprintf(`{"name":"type %s","config":{"type":%q}}`, types[0], types[0])).str("id")
			got := r.ask("POST", "/v1/environments/"+id, fmt.Sprintf(`{"config":{"type":%q}}`, types[1]))
			if got.status != 400 || got.str("error", "type") != "invalid_request_error" || got.str("error", "details", "error_code") != "invalid_config_type_change" {
				t.Errorf("got %d %s", got.status, got.text)
			}
			r.must("POST", "/v1/environments/"+id, fmt.Sprintf(`{"config":{"type":%q}}`, types[0]))
		})
	}
}

// conflict checks a 409 in both dialects.
func conflict(t *testing.T, got answer, dialect string) {
	t.Helper()
	if got.status != 409 || got.str("error", "type") != dialect || got.header.Get("X-Should-Retry") != "false" {
		t.Errorf("got %d %s, x-should-retry %q; want a 409 %s", got.status, got.text, got.header.Get("X-Should-Retry"), dialect)
	}
}

// TestEnvironmentNames: decision (c) and 3.8.
func TestEnvironmentNames(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	sb := r.sandBase()
	a := r.must("POST", "/v1/environments", `{"name":"a"}`).str("id")
	b := r.must("POST", "/v1/environments", `{"name":"b"}`).str("id")
	conflict(t, r.ask("POST", "/v1/environments", `{"name":"a"}`), "invalid_request_error")
	conflict(t, r.askAs(sb, "POST", "/v1/environments", `{"name":"a"}`), "conflict")
	conflict(t, r.ask("POST", "/v1/environments/"+b, `{"name":"a"}`), "invalid_request_error")
	conflict(t, r.askAs(sb, "POST", "/v1/environments/"+b, `{"name":"a"}`), "conflict")
	r.must("POST", "/v1/environments", `{"name":"A"}`) // case counts
	r.must("POST", "/v1/environments/"+a, `{"name":"a"}`)
	r.must("POST", "/v1/environments/"+a+"/archive", "")
	r.must("POST", "/v1/environments", `{"name":"a"}`) // an archived name is free
	r.must("POST", "/v1/environments/"+b, `{"name":"c"}`)
	r.must("POST", "/v1/environments", `{"name":"b"}`)
	r.must("DELETE", "/v1/environments/"+b, "")
	r.must("POST", "/v1/environments", `{"name":"c"}`)
}

// TestEnvironmentLifecycle: archive and delete.
func TestEnvironmentLifecycle(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	made := r.must("POST", "/v1/environments", `{"name":"e"}`)
	path := "/v1/environments/" + made.str("id")
	r.runtime.take()
	first := r.must("POST", path+"/archive", "")
	if !timestamp.MatchString(first.str("archived_at")) || first.str("updated_at") != first.str("archived_at") {
		t.Errorf("archived: %s", first.text)
	}
	second := r.must("POST", path+"/archive", "{}")
	if diff := cmp.Diff(first.body, second.body); diff != "" {
		t.Errorf("second archive (-first +second):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"environment e"}, r.runtime.take()); diff != "" {
		t.Errorf("runtime:\n%s", diff)
	}
	if diff := cmp.Diff(first.body, r.must("GET", path, "").body); diff != "" {
		t.Errorf("an archived environment reads:\n%s", diff)
	}
	for _, body := range []string{`{}`, `{"name":"x"}`} {
		got := r.ask("POST", path, body)
		if got.status != 400 || got.str("error", "details", "error_code") != "environment_archived" || got.message() != "Environment "+made.str("id")+" is archived." {
			t.Errorf("update of an archived environment: %d %s", got.status, got.text)
		}
	}
	gone := r.must("DELETE", path, "")
	if diff := cmp.Diff(map[string]any{"id": made.str("id"), "type": "environment_deleted"}, gone.body); diff != "" {
		t.Errorf("delete:\n%s", diff)
	}
	sb := r.sandBase()
	for _, ask := range [][3]string{{"GET", path, ""}, {"POST", path, "{}"}, {"DELETE", path, ""}, {"POST", path + "/archive", ""}, {"GET", "/v1/environments/x", ""}, {"GET", "/v1/environments/%00", ""}, {"GET", "/v1/environments/" + strings.Repeat("x", 3000), ""}} {
		if got := r.ask(ask[0], ask[1], ask[2]); got.status != 404 || got.str("error", "type") != "not_found_error" {
			t.Errorf("%s: %d %s", ask, got.status, got.text)
		}
		if got := r.askAs(sb, ask[0], ask[1], ask[2]); got.status != 404 || got.str("error", "type") != "not_found" {
			t.Errorf("SandBase %s: %d %s", ask, got.status, got.text)
		}
	}
	if got := r.ask("POST", path+"/archive", `{"force":true}`); got.status != 400 {
		t.Errorf("archive with a body: %d %s", got.status, got.text)
	}
}

// ids walks a list page by page.
func (r *rig) ids(path string, query url.Values) []string {
	r.t.Helper()
	query = maps.Clone(query)
	var all []string
	for range 100 {
		page := r.must("GET", path+"?"+query.Encode(), "")
		for _, item := range page.body["data"].([]any) {
			all = append(all, item.(map[string]any)["id"].(string))
		}
		next, ok := page.body["next_page"]
		if !ok {
			r.t.Fatalf("no next_page: %s", page.text)
		}
		if next == nil {
			return all
		}
		if !strings.HasPrefix(next.(string), "page_") {
			r.t.Fatalf("cursor %q", next)
		}
		query.Set("page", next.(string))
	}
	r.t.Fatal("the list does not end")
	return nil
}

// TestListEnvironments: order, limits, cursors and archived rows.
func TestListEnvironments(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var made []string
	for i := range 25 {
		made = append(made, r.must("POST", "/v1/environments", fmt.Sprintf(`{"name":"e%d"}`, i)).str("id"))
	}
	if !slices.IsSorted(made) {
		t.Error("ids do not sort by the order they were made in")
	}
	newest := slices.Clone(made)
	slices.Reverse(newest)
	if got := r.must("GET", "/v1/environments", "").body["data"].([]any); len(got) != 20 {
		t.Errorf("default limit gives %d", len(got))
	}
	for _, limit := range []string{"1", "7", "25", "1000"} {
		if diff := cmp.Diff(newest, r.ids("/v1/environments", url.Values{"limit": {limit}})); diff != "" {
			t.Errorf("limit %s:\n%s", limit, diff)
		}
	}
	r.must("POST", "/v1/environments/"+made[3]+"/archive", "")
	shown := slices.DeleteFunc(slices.Clone(newest), func(id string) bool { return id == made[3] })
	if diff := cmp.Diff(shown, r.ids("/v1/environments", url.Values{"limit": {"10"}})); diff != "" {
		t.Errorf("archived hidden:\n%s", diff)
	}
	if diff := cmp.Diff(newest, r.ids("/v1/environments", url.Values{"limit": {"10"}, "include_archived": {"true"}})); diff != "" {
		t.Errorf("archived shown:\n%s", diff)
	}
	// Rows that come and go between pages neither repeat nor hide others.
	page := r.must("GET", "/v1/environments?limit=5", "")
	r.must("DELETE", "/v1/environments/"+newest[4], "")
	r.must("POST", "/v1/environments", `{"name":"late"}`)
	next := r.must("GET", "/v1/environments?limit=1&page="+page.str("next_page"), "")
	if got := next.body["data"].([]any)[0].(map[string]any)["id"]; got != newest[5] {
		t.Errorf("after a change the next row is %v, want %s", got, newest[5])
	}
	for query, message := range map[string]string{
		"limit=0":              "limit: Input should be greater than or equal to 1",
		"limit=-1":             "limit: Input should be greater than or equal to 1",
		"limit=1001":           "limit: Input should be less than or equal to 1000",
		"limit=":               "limit: Input should be a valid integer",
		"limit=x":              "limit: Input should be a valid integer",
		"limit=1e2":            "limit: Input should be a valid integer",
		"include_archived=yep": "include_archived: Input should be a valid boolean",
	} {
		if got := r.ask("GET", "/v1/environments?"+query, ""); got.status != 400 || got.message() != message {
			t.Errorf("%s: %d %s, want %s", query, got.status, got.text, message)
		}
	}
}

// TestCursors: a cursor is good for the list that gave it and nothing else.
func TestCursors(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	other := r.stranger()
	for i := range 3 {
		body := fmt.Sprintf(`{"name":"e%d"}`, i)
		r.must("POST", "/v1/environments", body)
		r.must("POST", "/v1/agents", fmt.Sprintf(`{"name":"a%d","model":"m"}`, i))
		if got := r.askAs(other, "POST", "/v1/environments", body); got.status != 200 {
			t.Fatal(got.text)
		}
	}
	cursor := r.must("GET", "/v1/environments?limit=1", "").str("next_page")
	agents := r.must("GET", "/v1/agents?limit=1", "").str("next_page")
	r.must("GET", "/v1/environments?beta=true&limit=2&page="+cursor, "")
	flipped := cursor[:len(cursor)-3] + map[bool]string{true: "B", false: "A"}[cursor[len(cursor)-3] == 'A'] + cursor[len(cursor)-2:]
	bad := []struct{ key, path, cursor string }{
		{key, "/v1/environments", "page"}, {key, "/v1/environments", "page_"}, {key, "/v1/environments", "page_e30"},
		{key, "/v1/environments", "page_!!!"}, {key, "/v1/environments", cursor + "="}, {key, "/v1/environments", cursor[1:]},
		{key, "/v1/environments", strings.Repeat("page_", 1000)}, {key, "/v1/environments", flipped},
		{key, "/v1/environments", agents}, {key, "/v1/agents", cursor}, {key, "/v1/sessions", cursor}, {key, "/v1/sessions", "page"},
		{key, "/v1/environments?include_archived=true", cursor}, {other, "/v1/environments", cursor},
	}
	for _, test := range bad {
		path := test.path + "?"
		if strings.Contains(test.path, "?") {
			path = test.path + "&"
		}
		got := r.askAs(test.key, "GET", path+"page="+url.QueryEscape(test.cursor), "")
		if got.status != 400 || got.message() != "invalid page cursor" {
			t.Errorf("%s %.40q: %d %s", test.path, test.cursor, got.status, got.text)
		}
	}
}
