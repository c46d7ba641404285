package control

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

// SessionEnvironment is what a session's sandbox is made from: the config of
// the environment when the session was created, and the agent's MCP servers.
type SessionEnvironment struct {
	api.CloudConfig
	// MCPEndpoints are where the agent's MCP servers are. One that is not a
	// host name (an IP address) is left out.
	MCPEndpoints []egress.Endpoint
}

// SessionConfig reads a stored session's environment.
func SessionConfig(rec SessionRecord) (SessionEnvironment, error) {
	d, err := readSession(rec)
	if err != nil {
		return SessionEnvironment{}, err
	}
	env := SessionEnvironment{CloudConfig: d.Environment}
	for _, server := range d.Agent.MCPServers {
		if host, port, ok := serverAddress(server); ok {
			env.MCPEndpoints = append(env.MCPEndpoints, egress.Endpoint{Host: host.String(), Port: port, Rule: "mcp:" + server.Name})
		}
	}
	return env, nil
}

// SessionAgent reads a stored session's agent, with its overrides.
func SessionAgent(rec SessionRecord) (api.SessionAgent, error) {
	d, err := readSession(rec)
	return d.Agent, err
}

// serverAddress is the host and port of an MCP server; not ok when its host is
// not a host name.
func serverAddress(server api.MCPServer) (host egress.Host, port int, ok bool) {
	u, err := url.Parse(server.URL)
	if err != nil {
		return host, 0, false
	}
	if host, err = egress.Canonical(u.Hostname()); err != nil {
		return host, 0, false
	}
	port = 443
	if u.Scheme == "http" {
		port = 80
	}
	if text := u.Port(); text != "" {
		if port, err = strconv.Atoi(text); err != nil || port < 1 || port > 65535 {
			return host, 0, false
		}
	}
	return host, port, true
}

// checkServersReachable refuses MCP servers that the environment's network
// would not let the agent reach.
func checkServersReachable(environment string, n api.Networking, servers []api.MCPServer) error {
	if n.Type != api.NetworkLimited {
		return nil
	}
	policy, err := egress.Compile(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: n.AllowedHosts})
	if err != nil {
		return fmt.Errorf("compiling the network policy of %s: %w", environment, err)
	}
	for _, server := range servers {
		host, port, ok := serverAddress(server)
		if ok && n.AllowMCPServers {
			continue
		}
		if ok {
			_, ok = policy.Allows(host, port)
		}
		if !ok {
			return Faultf(Invalid, "Environment %s does not allow the MCP server %q: its host is not in `allowed_hosts` and `allow_mcp_servers` is %t.",
				environment, server.Name, n.AllowMCPServers)
		}
	}
	return nil
}
