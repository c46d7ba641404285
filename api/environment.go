package api

import "encoding/json"

// Environment is a container configuration that sessions refer to.
type Environment struct {
	ID          string            `json:"id"`
	Type        string            `json:"type"` // "environment"
	Name        string            `json:"name"`
	Description *string           `json:"description"`
	Config      Config            `json:"config"`
	Metadata    map[string]string `json:"metadata"`
	Scope       string            `json:"scope"`
	ArchivedAt  *Time             `json:"archived_at"`
	CreatedAt   Time              `json:"created_at"`
	UpdatedAt   Time              `json:"updated_at"`
}

// The types of a config and of networking.
const (
	ConfigCloud      = "cloud"
	ConfigSelfHosted = "self_hosted"

	NetworkUnrestricted = "unrestricted"
	NetworkLimited      = "limited"
)

// Config is an environment's config: cloud with all its members, or
// self-hosted with none. Exactly Cloud set means cloud; nil means self-hosted.
type Config struct{ Cloud *CloudConfig }

// Type is "cloud" or "self_hosted".
func (c Config) Type() string {
	if c.Cloud != nil {
		return ConfigCloud
	}
	return ConfigSelfHosted
}

// MarshalJSON writes the cloud config or {"type":"self_hosted"}.
func (c Config) MarshalJSON() ([]byte, error) {
	if c.Cloud != nil {
		return json.Marshal(c.Cloud)
	}
	return []byte(`{"type":"self_hosted"}`), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *Config) UnmarshalJSON(b []byte) error {
	var cloud CloudConfig
	if err := json.Unmarshal(b, &cloud); err != nil {
		return err
	}
	c.Cloud = nil
	if cloud.Type == ConfigCloud {
		c.Cloud = &cloud
	}
	return nil
}

// CloudConfig is a complete cloud config, as replies and the database hold it.
type CloudConfig struct {
	Type       string     `json:"type"` // "cloud"
	Networking Networking `json:"networking"`
	Packages   Packages   `json:"packages"`
	// BaseTemplate is empty when the default template is used.
	BaseTemplate string `json:"base_template,omitempty"`
}

// Networking says what a sandbox may reach. The members beyond Type count only
// under "limited".
type Networking struct {
	Type                 string   `json:"type"`
	AllowedHosts         []string `json:"allowed_hosts"`
	AllowMCPServers      bool     `json:"allow_mcp_servers"`
	AllowPackageManagers bool     `json:"allow_package_managers"`
}

// MarshalJSON writes all members under limited and the type alone otherwise.
func (n Networking) MarshalJSON() ([]byte, error) {
	if n.Type != NetworkLimited {
		return json.Marshal(struct {
			Type string `json:"type"`
		}{n.Type})
	}
	type plain Networking
	return json.Marshal(plain(n))
}

// Packages lists what each manager installs. In replies no list is nil.
type Packages struct {
	Type  string   `json:"type"` // "packages"
	Apt   []string `json:"apt"`
	Cargo []string `json:"cargo"`
	Gem   []string `json:"gem"`
	Go    []string `json:"go"`
	Npm   []string `json:"npm"`
	Pip   []string `json:"pip"`
}

// EnvironmentCreate is the body of a create.
type EnvironmentCreate struct {
	Name        string                 `json:"name" api:"required"`
	Description Opt[string]            `json:"description,omitzero"`
	Config      Opt[ConfigParams]      `json:"config,omitzero"`
	Metadata    Opt[map[string]string] `json:"metadata,omitzero"`
	Scope       Opt[Scope]             `json:"scope,omitzero"`
}

// EnvironmentUpdate is the body of an update. Absent fields keep what is stored.
type EnvironmentUpdate struct {
	Name        Opt[string]                 `json:"name,omitzero"`
	Description Opt[string]                 `json:"description,omitzero"`
	Config      Opt[ConfigParams]           `json:"config,omitzero"`
	Metadata    Opt[map[string]Opt[string]] `json:"metadata,omitzero"`
	Scope       Opt[Scope]                  `json:"scope,omitzero"`
}

// Scope is "organization" or "account".
type Scope string

func (s *Scope) bind(path string, n *node) error {
	if n.kind != kindString {
		return fieldErrorf(path, "Input should be a valid string")
	}
	*s = Scope(n.text)
	return enum(path, n.text, "organization", "account")
}

// ConfigParams is a config in a request. Networking, Packages and BaseTemplate
// are absent on a self-hosted one.
type ConfigParams struct {
	Type         string                `json:"type" api:"required"`
	Networking   Opt[NetworkingParams] `json:"networking,omitzero"`
	Packages     Opt[PackagesParams]   `json:"packages,omitzero"`
	BaseTemplate Opt[string]           `json:"base_template,omitzero"`
}

func (c *ConfigParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, ConfigCloud, ConfigSelfHosted)
	if err != nil {
		return err
	}
	if arm == ConfigSelfHosted {
		c.Type = arm
		return bindObject(path, n, &typeOnly{})
	}
	return bindObject(path, n, c)
}

// NetworkingParams is networking in a request. Only Type is there when it is
// unrestricted.
type NetworkingParams struct {
	Type                 string        `json:"type" api:"required"`
	AllowedHosts         Opt[[]string] `json:"allowed_hosts,omitzero"`
	AllowMCPServers      Opt[bool]     `json:"allow_mcp_servers,omitzero"`
	AllowPackageManagers Opt[bool]     `json:"allow_package_managers,omitzero"`
}

func (p *NetworkingParams) bind(path string, n *node) error {
	arm, err := bindArm(path, n, NetworkUnrestricted, NetworkLimited)
	if err != nil {
		return err
	}
	if arm == NetworkUnrestricted {
		p.Type = arm
		return bindObject(path, n, &typeOnly{})
	}
	return bindObject(path, n, p)
}

type typeOnly struct {
	Type string `json:"type" api:"required"`
}

// PackagesParams is packages in a request.
type PackagesParams struct {
	Type  PackagesType  `json:"type,omitempty"`
	Apt   Opt[[]string] `json:"apt,omitzero"`
	Cargo Opt[[]string] `json:"cargo,omitzero"`
	Gem   Opt[[]string] `json:"gem,omitzero"`
	Go    Opt[[]string] `json:"go,omitzero"`
	Npm   Opt[[]string] `json:"npm,omitzero"`
	Pip   Opt[[]string] `json:"pip,omitzero"`
}

// PackagesType is "packages" or absent.
type PackagesType string

func (t *PackagesType) bind(path string, n *node) error {
	if n.kind != kindString || n.text != "packages" {
		return fieldErrorf(path, "Input should be 'packages'")
	}
	*t = "packages"
	return nil
}
