package api

import "encoding/json"

// Agent is one version of an agent.
type Agent struct {
	Type              string            `json:"type"` // "agent"
	ID                string            `json:"id"`
	Version           int               `json:"version"`
	Name              string            `json:"name"`
	Description       *string           `json:"description"`
	Model             Model             `json:"model"`
	System            *string           `json:"system"`
	Tools             []Tool            `json:"tools"`
	MCPServers        []MCPServer       `json:"mcp_servers"`
	Skills            []Skill           `json:"skills"`
	Metadata          map[string]string `json:"metadata"`
	Multiagent        *struct{}         `json:"multiagent"` // always null until there are several
	ExecutionIdentity ExecutionIdentity `json:"execution_identity"`
	CreatedAt         Time              `json:"created_at"`
	UpdatedAt         Time              `json:"updated_at"`
	ArchivedAt        *Time             `json:"archived_at"`
}

// Model is a model and how it is to be run.
type Model struct {
	ID           string  `json:"id"`
	Speed        string  `json:"speed,omitempty"` // standard or fast
	Effort       *Effort `json:"effort,omitempty"`
	InferenceGeo string  `json:"inference_geo,omitempty"`
}

// Effort is low, medium, high, xhigh or max.
type Effort struct {
	Type string `json:"type"`
}

// ExecutionIdentity is who an agent's runs act as.
type ExecutionIdentity struct {
	Type string `json:"type"` // "service_account"
}

// MCPServer is a server of tools that an agent may use.
type MCPServer struct {
	Type string `json:"type"` // "url"
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Skill refers to a skill. No agent has one until skills are supported.
type Skill struct {
	Type    string `json:"type"`
	SkillID string `json:"skill_id"`
	Version string `json:"version"`
}

// The types of tools.
const (
	ToolsetAgent = "agent_toolset_20260401"
	ToolsetMCP   = "mcp_toolset"
	ToolCustom   = "custom"
)

// The tools of the agent toolset that the server runs itself; the others run in
// the session's sandbox.
const (
	ToolWebFetch  = "web_fetch"
	ToolWebSearch = "web_search"
)

// BuiltinTools are the names in the agent toolset.
var BuiltinTools = [...]string{"bash", "edit", "read", "write", "glob", "grep", ToolWebFetch, ToolWebSearch}

// Tool is an entry of an agent's tools: exactly one member is set.
type Tool struct {
	Toolset *Toolset // of type agent_toolset_20260401 or mcp_toolset
	Custom  *CustomTool
}

// MarshalJSON writes the member that is set.
func (t Tool) MarshalJSON() ([]byte, error) {
	if t.Custom != nil {
		return json.Marshal(t.Custom)
	}
	return json.Marshal(t.Toolset)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Tool) UnmarshalJSON(b []byte) error {
	var head struct{ Type string }
	if err := json.Unmarshal(b, &head); err != nil {
		return err
	}
	*t = Tool{}
	if head.Type == ToolCustom {
		t.Custom = &CustomTool{}
		return json.Unmarshal(b, t.Custom)
	}
	t.Toolset = &Toolset{}
	return json.Unmarshal(b, t.Toolset)
}

// Toolset is a set of tools with its settings resolved.
type Toolset struct {
	Type          string       `json:"type"`
	MCPServerName string       `json:"mcp_server_name,omitempty"` // of an mcp_toolset
	DefaultConfig ToolDefault  `json:"default_config"`
	Configs       []ToolConfig `json:"configs"`
}

// ToolDefault holds for the tools that no config names.
type ToolDefault struct {
	Enabled          bool             `json:"enabled"`
	PermissionPolicy PermissionPolicy `json:"permission_policy"`
}

// PermissionPolicy is always_allow, always_ask or auto.
type PermissionPolicy struct {
	Type string `json:"type"`
}

// ToolConfig holds for one tool. Type is empty in an mcp_toolset; the members
// after PermissionPolicy belong to web_fetch and web_search.
type ToolConfig struct {
	Type             string           `json:"type,omitempty"`
	Name             string           `json:"name"`
	Enabled          bool             `json:"enabled"`
	PermissionPolicy PermissionPolicy `json:"permission_policy"`
	AllowedDomains   []string         `json:"allowed_domains,omitempty"`
	BlockedDomains   []string         `json:"blocked_domains,omitempty"`
	MaxContentTokens *int             `json:"max_content_tokens,omitempty"`
	UserLocation     *UserLocation    `json:"user_location,omitempty"`
}

// MarshalJSON adds the null url_sources that web_fetch has in replies.
func (c ToolConfig) MarshalJSON() ([]byte, error) {
	type plain ToolConfig
	if c.Type != ToolWebFetch {
		return json.Marshal(plain(c))
	}
	return json.Marshal(struct {
		plain
		URLSources *struct{} `json:"url_sources"`
	}{plain: plain(c)})
}

// UserLocation is about where the user is, for web_search.
type UserLocation struct {
	Type     string `json:"type"` // "approximate"
	City     string `json:"city,omitempty"`
	Region   string `json:"region,omitempty"`
	Country  string `json:"country,omitempty"`
	Timezone string `json:"timezone,omitempty"`
}

// CustomTool is a tool that the API's client runs.
type CustomTool struct {
	Type        string          `json:"type"` // "custom"
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"input_schema"`
}
