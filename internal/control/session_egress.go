package control

import "github.com/atoll-run/atoll/internal/egress"

// Egress is what clients on the server's side may reach for a session.
type Egress struct {
	Meta egress.Meta // with an empty Source
	// Policy is the policy of the session's network, the template's registries
	// aside, which count for neither web tools nor MCP connections. It says what
	// each of these may reach, and is never nil.
	Policy *egress.Policy
}

// SessionEgress reads a stored session's policy.
func SessionEgress(rec SessionRecord) (Egress, error) {
	env, err := SessionConfig(rec)
	if err != nil {
		return Egress{}, err
	}
	return Egress{egress.Meta{SessionID: rec.ID, WorkspaceID: rec.Workspace, EnvironmentID: rec.Environment}, env.Policy}, nil
}
