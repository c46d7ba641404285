package egress_test

import (
	"fmt"

	"github.com/atoll-run/atoll/internal/egress"
)

// A policy opens hosts to everybody who works for a session, and endpoints to
// some.
func ExampleCompile() {
	mcp, err := egress.Canonical("MCP.example.com.")
	if err != nil {
		fmt.Println(err)
		return
	}
	policy, err := egress.Compile(egress.Spec{
		Mode:         egress.ModeLimited,
		AllowedHosts: []string{"example.com", "*.example.org"},
		Endpoints:    []egress.Endpoint{{Host: mcp, Port: 8443, Rule: "mcp:tools"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"example.com", "www.example.com", "a.b.example.org", "mcp.example.com"} {
		host, err := egress.Canonical(name)
		if err != nil {
			fmt.Println(err)
			return
		}
		port := 443
		if host == mcp {
			port = 8443
		}
		for _, source := range []string{egress.SourceSandbox, egress.SourceWebTool} {
			rule, ok := policy.Allows(source, host, port)
			fmt.Printf("%s %s:%d %t %q\n", source, host, port, ok, rule)
		}
	}
	_, err = egress.Compile(egress.Spec{Mode: egress.ModeLimited, AllowedHosts: []string{"example.com:8080"}})
	fmt.Println(err)
	// Output:
	// sandbox example.com:443 true "allowed_hosts[0]"
	// web_tool example.com:443 true "allowed_hosts[0]"
	// sandbox www.example.com:443 false ""
	// web_tool www.example.com:443 false ""
	// sandbox a.b.example.org:443 true "allowed_hosts[1]"
	// web_tool a.b.example.org:443 true "allowed_hosts[1]"
	// sandbox mcp.example.com:8443 true "mcp:tools"
	// web_tool mcp.example.com:8443 false ""
	// allowed_hosts[0]: `allowed_hosts` entry "example.com:8080" contains a port. Entries must be bare hostnames without ports.
}
