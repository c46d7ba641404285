package control

import (
	"testing"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
)

// TestSessionPolicy: what a session's network opens, and to whom, for each way in
// which an environment can be set. A kind of network that is not known is
// limited.
func TestSessionPolicy(t *testing.T) {
	t.Parallel()
	servers := []api.MCPServer{{Name: "a", URL: "https://MCP.example.com/x"}, {Name: "b", URL: "http://b.example.com:8080"}, {Name: "c", URL: "https://192.0.2.1/"}}
	registries := []image.Registry{{Manager: "npm", Host: "npm.example.com", Port: 443}, {Manager: "pip", Host: "192.0.2.7", Port: 443}}
	const all = "sandbox, web_tool, mcp"
	for name, tt := range map[string]struct {
		network api.Networking
		want    map[string]string // "host:port" → who may go there
	}{
		"unrestricted": {api.Networking{Type: api.NetworkUnrestricted, AllowPackageManagers: true},
			map[string]string{"ok.example.com": all, "mcp.example.com": all, "npm.example.com": all}},
		"limited": {api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"ok.example.com"}},
			map[string]string{"ok.example.com": all, "mcp.example.com": "", "npm.example.com": ""}},
		"with MCP servers": {api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"ok.example.com"}, AllowMCPServers: true},
			map[string]string{"ok.example.com": all, "mcp.example.com": "sandbox, mcp", "b.example.com": "", "npm.example.com": ""}},
		"with registries": {api.Networking{Type: api.NetworkLimited, AllowPackageManagers: true},
			map[string]string{"ok.example.com": "", "mcp.example.com": "", "npm.example.com": "sandbox"}},
		"not known": {api.Networking{Type: "", AllowPackageManagers: true},
			map[string]string{"ok.example.com": "", "npm.example.com": "sandbox"}},
	} {
		policy, err := sessionPolicy(tt.network, servers)
		if err != nil {
			t.Fatal(err)
		}
		env := SessionEnvironment{CloudConfig: api.CloudConfig{Networking: tt.network}, Policy: policy}
		if policy, err = networkPolicy(env, registries); err != nil {
			t.Fatal(err)
		}
		for host, want := range tt.want {
			got := ""
			for _, source := range []string{egress.SourceSandbox, egress.SourceWebTool, egress.SourceMCP} {
				h, err := egress.Canonical(host)
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := policy.Allows(source, h, 443); !ok {
					continue
				}
				if got != "" {
					got += ", "
				}
				got += source
			}
			if got != want {
				t.Errorf("%s: %s is open to %q, want %q", name, host, got, want)
			}
		}
	}
	if _, err := sessionPolicy(api.Networking{Type: api.NetworkLimited, AllowedHosts: []string{"*"}}, nil); err == nil {
		t.Error("a host that is none was taken")
	}
}
