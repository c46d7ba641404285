package control

import (
	"fmt"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
)

// Egress is what clients on the server's side may reach for a session.
type Egress struct {
	Meta egress.Meta // with an empty Source
	// Session is the policy of the session's network, the template's registries
	// aside: it holds until the network is open.
	Session *egress.Policy
	// Web is what the web tools may reach: the environment's allowed hosts under
	// limited networking, every public host otherwise. The two allow_ flags of
	// the environment add nothing to it.
	Web *egress.Policy
}

// SessionEgress reads a stored session's policies.
func SessionEgress(rec SessionRecord) (Egress, error) {
	env, err := SessionConfig(rec)
	if err != nil {
		return Egress{}, err
	}
	out := Egress{Meta: egress.Meta{SessionID: rec.ID, WorkspaceID: rec.Workspace, EnvironmentID: rec.Environment}}
	if out.Session, err = egress.Compile(sessionPolicy(env, nil)); err != nil {
		return Egress{}, fmt.Errorf("compiling the policy of %s: %w", rec.ID, err)
	}
	web := egress.Spec{Mode: egress.ModeUnrestricted}
	if env.Networking.Type == api.NetworkLimited {
		web = egress.Spec{Mode: egress.ModeLimited, AllowedHosts: env.Networking.AllowedHosts}
	}
	if out.Web, err = egress.Compile(web); err != nil {
		return Egress{}, fmt.Errorf("compiling the web policy of %s: %w", rec.ID, err)
	}
	return out, nil
}
