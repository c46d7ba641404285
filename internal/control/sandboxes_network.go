package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
)

func sessionMeta(rec SessionRecord) egress.Meta {
	return egress.Meta{SessionID: rec.ID, WorkspaceID: rec.Workspace, EnvironmentID: rec.Environment, Source: egress.SourceSandbox}
}

// networkPolicy is what the network of a session's sandbox may reach: fixed when
// the sandbox is made.
func networkPolicy(env SessionEnvironment, registries []image.Registry) (*egress.Policy, error) {
	if env.Networking.Type == api.NetworkUnrestricted || !env.Networking.AllowPackageManagers {
		return env.Policy, nil
	}
	policy, err := env.Policy.With(registryEndpoints(registries)...)
	if err != nil {
		return nil, fmt.Errorf("compiling the network policy: %w", err)
	}
	return policy, nil
}

// openNetwork makes the network of a session's new sandbox.
func (s *Sandboxes) openNetwork(ctx context.Context, rec SessionRecord, env SessionEnvironment, base *image.Base) (netns string, err error) {
	s.policies.RLock()
	defer s.policies.RUnlock()
	registries, ok := s.builds.registries(base.Digest)
	if !ok {
		registries = base.Registries
	}
	policy, err := networkPolicy(env, registries)
	if err != nil {
		return "", err
	}
	meta := sessionMeta(rec)
	meta.Base = base.Digest
	netns, err = s.network.Open(ctx, rec.ID, meta, policy)
	if err != nil {
		return "", fmt.Errorf("making the session's network: %w", err)
	}
	return netns, nil
}

// RegistriesChanged puts every session's network, of running and of hibernating
// sandboxes, under a policy with the registries as the operator sets them now;
// what that does not allow is closed before it returns. Everything else in a
// policy stays as it was when the sandbox was made. It returns how many policies
// changed. One that could not be changed stays as it was and is in the error.
func (s *Sandboxes) RegistriesChanged(ctx context.Context) (changed int, err error) {
	s.policies.Lock()
	defer s.policies.Unlock()
	s.builds.registriesChanged()
	var live []SessionRecord
	err = s.store.LiveSessions(ctx, func(rec SessionRecord) error {
		live = append(live, rec)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("reading live sessions: %w", err)
	}
	var failed []error
	for _, rec := range live {
		switch altered, err := s.repolicy(ctx, rec); {
		case errors.Is(err, egress.ErrNotFound): // no network yet, or no more
		case err != nil:
			failed = append(failed, fmt.Errorf("changing the network policy of %s: %w", rec.ID, err))
		case altered:
			changed++
		}
	}
	return changed, errors.Join(failed...)
}

// repolicy makes one session's policy again and installs it if it differs.
func (s *Sandboxes) repolicy(ctx context.Context, rec SessionRecord) (bool, error) {
	env, err := SessionConfig(rec)
	if err != nil || !env.Networking.AllowPackageManagers {
		return false, err // its policy has no registries
	}
	meta, before, err := s.network.Describe(rec.ID)
	if err != nil {
		return false, err
	}
	registries, ok := s.builds.registries(meta.Base)
	if !ok {
		return false, fmt.Errorf("the template version %q is gone", meta.Base)
	}
	policy, err := networkPolicy(env, registries)
	if err != nil || policy.Equal(before) {
		return false, err
	}
	return true, s.network.Update(ctx, rec.ID, policy)
}

// networksEvery is how often networks are looked at. It takes a call of the
// kernel each.
const networksEvery = 2 * time.Second

// watchNetworks tells sessions that their network is broken, until Shutdown.
func (s *Sandboxes) watchNetworks() {
	tick := time.NewTicker(networksEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		for _, meta := range s.network.Broken() {
			switch rec, err := s.store.Session(s.ctx, meta.WorkspaceID, meta.SessionID); {
			case errors.Is(err, ErrNoRecord): // a build, whose own failure tells
			case err != nil:
				s.log.ErrorContext(s.ctx, "telling a session of its network", "session_id", meta.SessionID, "error", err)
			default:
				s.notify(rec, SandboxCutOff, sandboxWords[SandboxCutOff])
			}
		}
	}
}
