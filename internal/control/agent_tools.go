package control

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

// The limits of an agent's tools.
const (
	maxTools   = 256
	maxServers = 20
	maxDomains = 64
)

var (
	customToolName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,128}$`)
	countryCode    = regexp.MustCompile(`^[A-Z]{2}$`)
)

// resolveModel is a model as replies show it: with its defaults.
func resolveModel(path string, p api.ModelParams) (api.Model, error) {
	if err := checkLength(path, p.ID, 1, 256); err != nil {
		return api.Model{}, err
	}
	m := api.Model{ID: p.ID, Speed: p.Speed.Or("standard"), InferenceGeo: p.InferenceGeo.Or("")}
	if p.Effort.Given() {
		m.Effort = &api.Effort{Type: p.Effort.Value.Type}
	}
	return m, checkOptional(path+".inference_geo", p.InferenceGeo, 1, 64)
}

// resolveServers are MCP servers as replies show them.
func resolveServers(path string, params []api.MCPServerParams) ([]api.MCPServer, error) {
	if len(params) > maxServers {
		return nil, badField(path, "List should have at most %d items", maxServers)
	}
	servers := []api.MCPServer{}
	seen := map[string]bool{}
	for i, p := range params {
		at := fmt.Sprintf("%s[%d]", path, i)
		if err := checkLength(at+".name", p.Name, 1, 255); err != nil {
			return nil, err
		}
		if err := checkLength(at+".url", p.URL, 1, 2048); err != nil {
			return nil, err
		}
		u, err := url.Parse(p.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil {
			return nil, badField(at+".url", "Input should be an http or https URL with a host and without credentials")
		}
		if seen[p.Name] {
			return nil, badField(at+".name", "MCP server names must be unique")
		}
		seen[p.Name] = true
		servers = append(servers, api.MCPServer{Type: "url", Name: p.Name, URL: p.URL})
	}
	return servers, nil
}

// resolveTools are tools as replies show them: every default spelled out.
func resolveTools(path string, params []api.ToolParams) ([]api.Tool, error) {
	tools := []api.Tool{}
	count := len(params)
	for i, p := range params {
		at := fmt.Sprintf("%s[%d]", path, i)
		tool, err := resolveTool(at, p)
		if err != nil {
			return nil, err
		}
		if tool.Toolset != nil {
			count += len(tool.Toolset.Configs)
		}
		tools = append(tools, tool)
	}
	if count > maxTools {
		return nil, badField(path, "At most %d tools are allowed across all toolsets", maxTools)
	}
	return tools, nil
}

func resolveTool(path string, p api.ToolParams) (api.Tool, error) {
	switch {
	case p.Agent != nil:
		set := api.Toolset{Type: api.ToolsetAgent, DefaultConfig: toolDefault(p.Agent.DefaultConfig, "always_allow"), Configs: []api.ToolConfig{}}
		for i, c := range p.Agent.Configs.Or(nil) {
			config, err := resolveBuiltin(fmt.Sprintf("%s.configs[%d]", path, i), c, set.DefaultConfig)
			if err != nil {
				return api.Tool{}, err
			}
			set.Configs = append(set.Configs, config)
		}
		return api.Tool{Toolset: &set}, uniqueConfigs(path, set.Configs)
	case p.MCP != nil:
		if err := checkLength(path+".mcp_server_name", p.MCP.MCPServerName, 1, 255); err != nil {
			return api.Tool{}, err
		}
		// A server may add tools at any time: they ask unless told otherwise.
		set := api.Toolset{Type: api.ToolsetMCP, MCPServerName: p.MCP.MCPServerName,
			DefaultConfig: toolDefault(p.MCP.DefaultConfig, "always_ask"), Configs: []api.ToolConfig{}}
		for i, c := range p.MCP.Configs.Or(nil) {
			if err := checkLength(fmt.Sprintf("%s.configs[%d].name", path, i), c.Name, 1, 128); err != nil {
				return api.Tool{}, err
			}
			set.Configs = append(set.Configs, api.ToolConfig{Name: c.Name,
				Enabled: c.Enabled.Or(set.DefaultConfig.Enabled), PermissionPolicy: policy(c.PermissionPolicy, set.DefaultConfig.PermissionPolicy)})
		}
		return api.Tool{Toolset: &set}, uniqueConfigs(path, set.Configs)
	}
	c := p.Custom
	if !customToolName.MatchString(c.Name) {
		return api.Tool{}, badField(path+".name", "String should match pattern '%s'", customToolName)
	}
	if c.Description == "" {
		return api.Tool{}, badField(path+".description", "String should have at least 1 character")
	}
	return api.Tool{Custom: &api.CustomTool{Type: api.ToolCustom, Name: c.Name, Description: c.Description, InputSchema: c.InputSchema}}, nil
}

func toolDefault(params api.Opt[api.ToolDefaultParams], permission string) api.ToolDefault {
	return api.ToolDefault{
		Enabled:          params.Value.Enabled.Or(true),
		PermissionPolicy: policy(params.Value.PermissionPolicy, api.PermissionPolicy{Type: permission}),
	}
}

func policy(given api.Opt[api.PolicyParams], fallback api.PermissionPolicy) api.PermissionPolicy {
	if given.Given() {
		return api.PermissionPolicy{Type: given.Value.Type}
	}
	return fallback
}

func uniqueConfigs(path string, configs []api.ToolConfig) error {
	seen := map[string]bool{}
	for i, c := range configs {
		if seen[c.Name] {
			return badField(fmt.Sprintf("%s.configs[%d].name", path, i), "Tool names must be unique in a toolset")
		}
		seen[c.Name] = true
	}
	return nil
}

func resolveBuiltin(path string, p api.BuiltinParams, def api.ToolDefault) (api.ToolConfig, error) {
	c := api.ToolConfig{Type: p.Name, Name: p.Name, Enabled: p.Enabled.Or(def.Enabled),
		PermissionPolicy: policy(p.PermissionPolicy, def.PermissionPolicy)}
	if p.URLSources.Given() {
		return c, unsupported(path + ".url_sources")
	}
	if p.AllowedDomains.Given() && p.BlockedDomains.Given() {
		return c, badField(path, "allowed_domains and blocked_domains cannot be combined")
	}
	var err error
	if c.AllowedDomains, err = domains(path+".allowed_domains", p.AllowedDomains, p.Name == api.ToolWebSearch); err != nil {
		return c, err
	}
	if c.BlockedDomains, err = domains(path+".blocked_domains", p.BlockedDomains, p.Name == api.ToolWebSearch); err != nil {
		return c, err
	}
	if p.MaxContentTokens.Given() {
		n := p.MaxContentTokens.Value
		if n < 1 || n > maxVersion {
			return c, badField(path+".max_content_tokens", "Input should be between 1 and %d", maxVersion)
		}
		c.MaxContentTokens = &n
	}
	if p.UserLocation.Given() {
		c.UserLocation, err = location(path+".user_location", p.UserLocation.Value)
	}
	return c, err
}

// domains checks a list of plain hostnames or addresses, with a path behind where
// one is allowed.
func domains(path string, list api.Opt[[]string], withPath bool) ([]string, error) {
	if list.Null {
		return nil, badField(path, "Input should be a valid list")
	}
	if !list.Set {
		return nil, nil
	}
	if n := len(list.Value); n == 0 || n > maxDomains {
		return nil, badField(path, "List should have between 1 and %d items; omit the field for none", maxDomains)
	}
	for i, entry := range list.Value {
		host := entry
		if withPath {
			host, _, _ = strings.Cut(entry, "/")
		}
		_, err := egress.Canonical(host)
		if addr, ip := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")); ip == nil && addr.Zone() == "" {
			err = nil
		}
		if err != nil || len(entry) > 2048 {
			return nil, badField(fmt.Sprintf("%s[%d]", path, i), `Entries must be plain hostnames like "docs.example.com"`)
		}
	}
	return list.Value, nil
}

func location(path string, p api.LocationParams) (*api.UserLocation, error) {
	l := &api.UserLocation{Type: "approximate", City: p.City.Or(""), Region: p.Region.Or(""), Country: p.Country.Or(""), Timezone: p.Timezone.Or("")}
	if p.Country.Given() && !countryCode.MatchString(p.Country.Value) {
		return nil, badField(path+".country", "String should match pattern '%s'", countryCode)
	}
	for _, f := range []struct {
		name  string
		value api.Opt[string]
	}{{"city", p.City}, {"region", p.Region}, {"timezone", p.Timezone}} {
		if err := checkOptional(path+"."+f.name, f.value, 1, 255); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// checkToolReferences holds what tools and MCP servers must be together: each
// server is used by one mcp_toolset, and no two tools have the same name.
func checkToolReferences(prefix string, tools []api.Tool, servers []api.MCPServer) error {
	declared := map[string]bool{}
	for _, server := range servers {
		declared[server.Name] = true
	}
	used, names, builtin := map[string]bool{}, map[string]bool{}, false
	for i, tool := range tools {
		at := fmt.Sprintf("%stools[%d]", prefix, i)
		switch {
		case tool.Custom != nil:
			if names[tool.Custom.Name] {
				return badField(at+".name", "Tool names must be unique")
			}
			names[tool.Custom.Name] = true
		case tool.Toolset.Type == api.ToolsetAgent:
			if builtin {
				return badField(at+".type", "Only one '%s' is allowed", api.ToolsetAgent)
			}
			builtin = true
		default:
			name := tool.Toolset.MCPServerName
			if !declared[name] {
				return badField(at+".mcp_server_name", "%q is not the name of one of mcp_servers", name)
			}
			if used[name] {
				return badField(at+".mcp_server_name", "%q has an mcp_toolset already", name)
			}
			used[name] = true
		}
	}
	for i, server := range servers {
		if !used[server.Name] {
			return badField(fmt.Sprintf("%smcp_servers[%d].name", prefix, i), "%q is not used by an mcp_toolset in tools", server.Name)
		}
	}
	if builtin {
		for _, name := range api.BuiltinTools {
			if names[name] {
				return badField(prefix+"tools", "%q is a built-in tool and cannot be the name of a custom one", name)
			}
		}
	}
	return nil
}
