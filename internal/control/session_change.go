package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/atoll-run/atoll/api"
)

// UpdateSession changes a session that is not archived; its agent's tools only
// while it does not run.
func (s *Service) UpdateSession(ctx context.Context, caller Caller, id string, req api.SessionUpdate) (api.Session, error) {
	switch {
	case req.VaultIDs.Given():
		return api.Session{}, unsupported("vault_ids")
	case req.Budget.Given():
		return api.Session{}, unsupported("budget")
	case req.Agent.Null:
		return api.Session{}, badField("agent", "Input should be a valid dictionary")
	}
	if err := checkOptional("title", req.Title, 1, 500); err != nil {
		return api.Session{}, err
	}
	rec, _, err := s.turns.change(ctx, caller.Workspace, id, func(state LogState, now time.Time) (LogChange, error) {
		return s.patchSession(state.Session, req, now)
	})
	if err != nil {
		return api.Session{}, sessionFault(id, err)
	}
	return s.sessionReply(rec)
}

// patchSession is the change that an update asks for, with the event that tells
// of it; without one when nothing is altered.
func (s *Service) patchSession(rec SessionRecord, req api.SessionUpdate, now time.Time) (LogChange, error) {
	var none LogChange
	if !rec.ArchivedAt.IsZero() {
		return none, sessionArchived(rec.ID)
	}
	d, err := readSession(rec)
	if err != nil {
		return none, err
	}
	var told api.UpdatedFields
	altered := false
	if title := orNull(req.Title); req.Title.Set && !equal(title, d.Title) {
		d.Title, told.Title, altered = title, req.Title, true
	}
	if req.Metadata.Given() {
		merged := mergeMetadata(d.Metadata, req.Metadata.Value, false)
		if err := checkMetadata(merged); err != nil {
			return none, err
		}
		if !maps.Equal(merged, d.Metadata) {
			d.Metadata, told.Metadata, altered = merged, merged, true
		}
	}
	if req.Agent.Set {
		changed, err := patchSessionAgent(&d, rec, req.Agent.Value)
		if err != nil {
			return none, err
		}
		if changed {
			told.Agent, altered = &d.Agent, true
		}
	}
	if !altered {
		return none, nil
	}
	if err := d.set(&rec); err != nil {
		return none, err
	}
	rec.UpdatedAt = now
	fields, err := json.Marshal(told)
	if err != nil {
		return none, fmt.Errorf("writing an update event: %w", err)
	}
	return LogChange{Session: &rec, Log: []EventRecord{{ID: s.turns.EventID(), Type: api.EventSessionUpdated, Fields: fields}}}, nil
}

// patchSessionAgent replaces the tools and MCP servers of a session's agent.
func patchSessionAgent(d *sessionDocument, rec SessionRecord, req api.SessionAgentUpdate) (changed bool, err error) {
	if working(rec) {
		return false, Faultf(Invalid, "Cannot update the agent of a session while it is running. Send an interrupt event or wait for the session to complete.")
	}
	before, err := json.Marshal(d.Agent)
	if err != nil {
		return false, fmt.Errorf("writing a session's agent: %w", err)
	}
	if err := overrideTools(&d.Agent, req.Tools, req.MCPServers); err != nil {
		return false, err
	}
	if err := checkServersReachable(rec.Environment, d.Environment.Networking, d.Agent.MCPServers); err != nil {
		return false, err
	}
	after, err := json.Marshal(d.Agent)
	return !bytes.Equal(before, after), err
}

func equal(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }

// working tells whether the agent loop is at work for a session.
func working(rec SessionRecord) bool {
	return rec.Status == api.SessionRunning || rec.Status == api.SessionRescheduling
}

func sessionArchived(id string) error {
	return Faultf(Invalid, "Session %s is archived.", id)
}

// ArchiveSession ends a session that does not run: its sandbox goes, its record
// and its log stay. Repeating it changes nothing.
func (s *Service) ArchiveSession(ctx context.Context, caller Caller, id string) (api.Session, error) {
	rec, _, err := s.turns.change(ctx, caller.Workspace, id, s.archive)
	if err != nil {
		return api.Session{}, sessionFault(id, err)
	}
	// The archive is durable, so the caller hears of it; what is left of the
	// sandbox goes at the next attempt or reconciliation.
	ctx = context.WithoutCancel(ctx)
	if s.loop != nil {
		if err := s.loop.Ended(ctx, rec.ID); err != nil {
			s.log.ErrorContext(ctx, "ending the work of an archived session", "session_id", rec.ID, "error", err)
		}
	}
	if s.runtime != nil {
		if err := s.runtime.SessionEnded(ctx, rec); err != nil {
			s.log.ErrorContext(ctx, "ending the sandbox of an archived session", "session_id", rec.ID, "error", err)
		}
	}
	return s.sessionReply(rec)
}

// archive is the change that archives a session.
func (s *Service) archive(state LogState, now time.Time) (LogChange, error) {
	rec := state.Session
	switch {
	case !rec.ArchivedAt.IsZero():
		return LogChange{}, nil
	case working(rec):
		return LogChange{}, whileRunning("archive")
	}
	rec.ArchivedAt, rec.UpdatedAt = now, now
	change := LogChange{Session: &rec}
	if rec.Status == api.SessionTerminated { // it has ended by itself
		return change, nil
	}
	var err error
	change.Log, err = s.statusEvents(rec, api.EventThreadTerminated, api.EventSessionTerminated)
	return change, err
}

// statusEvents makes status events of a session; those of its primary thread
// name it.
func (s *Service) statusEvents(rec SessionRecord, types ...string) (events []EventRecord, err error) {
	thread, err := SessionThread(rec)
	if err != nil {
		return nil, err
	}
	for _, name := range types {
		e := EventRecord{ID: s.turns.EventID(), Type: name}
		if strings.HasPrefix(name, "session.thread_") {
			if e.Fields, err = json.Marshal(thread); err != nil {
				return nil, fmt.Errorf("writing a thread event: %w", err)
			}
		}
		events = append(events, e)
	}
	return events, nil
}

func whileRunning(verb string) error {
	return Faultf(Invalid, "Cannot %s session while it is running. Send an interrupt event or wait for the session to complete.", verb)
}

// DeleteSession removes a session that does not run, and all it had.
func (s *Service) DeleteSession(ctx context.Context, caller Caller, id string) (api.Deleted, error) {
	rec, err := s.store.Session(ctx, caller.Workspace, id)
	if err != nil {
		return api.Deleted{}, sessionFault(id, err)
	}
	idle := func(rec SessionRecord) error {
		if working(rec) {
			return whileRunning("delete")
		}
		return nil
	}
	if err := idle(rec); err != nil {
		return api.Deleted{}, err
	}
	if s.runtime != nil {
		if err := s.runtime.SessionEnded(context.WithoutCancel(ctx), rec); err != nil {
			return api.Deleted{}, err
		}
	}
	if err := s.store.DeleteSession(ctx, caller.Workspace, id, idle); err != nil {
		return api.Deleted{}, sessionFault(id, err)
	}
	s.turns.deleted(id)
	ctx = context.WithoutCancel(ctx)
	if s.loop != nil {
		if err := s.loop.Ended(ctx, id); err != nil {
			s.log.ErrorContext(ctx, "ending the work of a deleted session", "session_id", id, "error", err)
		}
	}
	if s.runtime != nil {
		// A command may have asked for a sandbox while the record was still there.
		if err := s.runtime.SessionEnded(ctx, rec); err != nil {
			s.log.ErrorContext(ctx, "ending the sandbox of a deleted session", "session_id", rec.ID, "error", err)
		}
	}
	return api.Deleted{ID: id, Type: "session_deleted"}, nil
}
