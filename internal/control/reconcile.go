package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/atoll-run/atoll/internal/control/lifecycle"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// ErrLeftBehind: Reconcile could not remove, or not take up, everything; what it
// did not hinders nothing that is new.
var ErrLeftBehind = errors.New("something was left behind")

// Reconcile makes the world agree with the store, once, before the server
// answers: running sandboxes of live sessions are found again and get their
// network back, hibernated and dead ones are kept for their next use; every
// other sandbox and network of this server's directory is removed, and builds
// that were under way begin again. What cannot be removed is tried again at the next
// start: the error is then an ErrLeftBehind. After any other error the sandboxes
// that are there are not known, and no request may be answered: sessions would get
// fresh ones in their place.
func (s *Sandboxes) Reconcile(ctx context.Context) error {
	live := map[string]SessionRecord{}
	err := s.store.LiveSessions(ctx, func(rec SessionRecord) error {
		live[rec.ID] = rec
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading live sessions: %w", err)
	}
	infos, err := s.engine.List(ctx)
	if err != nil {
		return fmt.Errorf("listing sandboxes: %w", err)
	}
	kept, adopted := map[string]bool{}, 0
	var failed []error
	for _, info := range infos {
		rec, alive := live[info.ID]
		ok, err := s.adopt(ctx, info, rec, alive)
		if err != nil {
			failed = append(failed, err)
		}
		if kept[info.ID] = ok; ok {
			adopted++
		}
	}
	failed = append(failed, s.closeStray(ctx, kept)...)
	err = s.store.UnfinishedBuilds(ctx, func(rec EnvironmentRecord) error {
		s.builds.Changed(rec)
		return nil
	})
	if err != nil {
		failed = append(failed, fmt.Errorf("taking up unfinished builds: %w", err))
	}
	s.background.Go(s.watchNetworks)
	s.log.InfoContext(ctx, "reconciled", "sandboxes", len(infos), "kept", adopted, "failed", len(failed))
	if len(failed) > 0 {
		return fmt.Errorf("%w: %w", ErrLeftBehind, errors.Join(failed...))
	}
	return nil
}

// adopt takes over one sandbox that a former server made, or removes it.
func (s *Sandboxes) adopt(ctx context.Context, info sandbox.Info, rec SessionRecord, live bool) (bool, error) {
	if live && info.Labels[labelKind] == kindSession && (info.State == sandbox.StateRunning || info.Files) {
		fact := lifecycle.Died
		switch info.State {
		case sandbox.StateHibernated:
			fact = lifecycle.Sleeps
		case sandbox.StateRunning:
			fact = lifecycle.Runs
			if _, err := s.network.Reopen(ctx, info.ID); err != nil {
				// Its files are worth more than its network, which stays closed.
				s.log.ErrorContext(ctx, "sandbox keeps running without network", "session_id", info.ID, "error", err)
				s.notify(rec, SandboxCutOff, sandboxWords[SandboxCutOff])
			}
		}
		s.found(rec, fact, nil)
		return true, nil
	}
	if live {
		s.found(rec, lifecycle.Vanished, endingRestart) // the engine has it, without files
	}
	s.log.InfoContext(ctx, "removing a sandbox that no session owns", "sandbox_id", info.ID, "state", info.State)
	if err := s.engine.Destroy(ctx, info.ID); err != nil {
		return false, fmt.Errorf("removing sandbox %s: %w", info.ID, err)
	}
	return false, nil
}

// found records the sandbox of a live session that is there already, or that is
// lost, of which the next command is told.
func (s *Sandboxes) found(rec SessionRecord, fact lifecycle.Event, why error) {
	m, release := s.hold(rec)
	defer release()
	m.Report(m.Now(), fact, why)
}

// closeStray removes networks without a sandbox.
func (s *Sandboxes) closeStray(ctx context.Context, kept map[string]bool) []error {
	ids, err := s.network.List(ctx)
	if err != nil {
		return []error{fmt.Errorf("listing networks: %w", err)}
	}
	var failed []error
	for _, id := range ids {
		if kept[id] {
			continue
		}
		if err := s.network.Close(ctx, id); err != nil {
			failed = append(failed, fmt.Errorf("removing the network of %s: %w", id, err))
		}
	}
	return failed
}
