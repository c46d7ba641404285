package control

import (
	"context"
	"fmt"
	"net"

	"github.com/atoll-run/atoll/internal/egress"
)

// Dialer returns a function for http.Transport.DialContext that connects on the
// server for a session: for its web tools (egress.SourceWebTool) or to its
// agent's MCP servers (egress.SourceMCP). It goes through the session's network
// policy and the dial guard, and each decision is among the session's records.
// It works whether the session's sandbox is there, hibernates or is still being
// prepared. A refusal is an *egress.DialError. The transport must have no proxy,
// and its connections are closed when the session ends.
func (s *Sandboxes) Dialer(rec SessionRecord, source string) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	env, err := SessionConfig(rec)
	if err != nil {
		return nil, err
	}
	// Registries open nothing to the server's own connections, so that the
	// template need not be known.
	policy, err := egress.Compile(sessionPolicy(env, nil))
	if err != nil {
		return nil, fmt.Errorf("compiling the network policy: %w", err)
	}
	client := egress.Client{ID: rec.ID, Source: source, Meta: sessionMeta(rec), Policy: policy}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.network.DialContext(ctx, client, network, address)
	}, nil
}
