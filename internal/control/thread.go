package control

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/atoll-run/atoll/api"
)

// A session has one thread, its primary one, whose events are the session's.

// threadReply is the primary thread of a session as clients see it.
func (s *Service) threadReply(rec SessionRecord) (api.Thread, error) {
	d, err := readSession(rec)
	if err != nil {
		return api.Thread{}, err
	}
	now := s.clock()
	thread := api.Thread{
		Type: "session_thread", ID: d.Thread, SessionID: rec.ID, Status: rec.Status, Agent: api.ThreadAgent(d.Agent),
		CreatedAt: api.Time{Time: rec.CreatedAt}, UpdatedAt: api.Time{Time: rec.UpdatedAt}, ArchivedAt: api.NullTime(rec.ArchivedAt),
	}
	if d.Totals.Idled {
		usage := d.usage(now)
		thread.Usage = &usage
	}
	if d.Totals.Changed {
		thread.Stats = &api.ThreadStats{DurationSeconds: d.duration(rec, now), ActiveSeconds: d.Totals.active(now)}
		if !d.Totals.Started.IsZero() {
			thread.Stats.StartupSeconds = seconds(max(0, d.Totals.Started.Sub(rec.CreatedAt)))
		}
	}
	return thread, nil
}

// Thread returns a thread of a session.
func (s *Service) Thread(ctx context.Context, caller Caller, session, id string) (api.Thread, error) {
	rec, err := s.store.Session(ctx, caller.Workspace, session)
	if err != nil {
		return api.Thread{}, sessionFault(session, err)
	}
	thread, err := s.threadReply(rec)
	if err == nil && thread.ID != id {
		err = Faultf(NotFound, "Thread %s not found.", printable(id))
	}
	return thread, err
}

// ListThreads lists the threads of a session that have one of the statuses, or
// any. There is one page.
func (s *Service) ListThreads(ctx context.Context, caller Caller, session string, limit api.Opt[int], page string, statuses []string) (api.List[api.Thread], error) {
	list := api.List[api.Thread]{Data: []api.Thread{}}
	if _, err := pageLimit(limit, 1000); err != nil {
		return list, err
	}
	if page != "" {
		return list, Faultf(Invalid, "invalid page cursor")
	}
	for i, status := range statuses {
		if !slices.Contains(sessionStatuses, status) {
			return list, badField(fmt.Sprintf("statuses[%d]", i), statusesReason)
		}
	}
	rec, err := s.store.Session(ctx, caller.Workspace, session)
	if err != nil {
		return list, sessionFault(session, err)
	}
	if len(statuses) > 0 && !slices.Contains(statuses, rec.Status) {
		return list, nil
	}
	thread, err := s.threadReply(rec)
	list.Data = append(list.Data, thread)
	return list, err
}

// ArchiveThread refuses: a session's primary thread ends with the session.
func (s *Service) ArchiveThread(ctx context.Context, caller Caller, session, id string) error {
	if _, err := s.Thread(ctx, caller, session, id); err != nil {
		return err
	}
	return Faultf(Invalid, "Thread %s is the primary thread of its session and cannot be archived; archive the session instead.", id)
}

// ListThreadEvents lists the events of a thread, oldest first.
func (s *Service) ListThreadEvents(ctx context.Context, caller Caller, session, id string, limit api.Opt[int], page string) (api.List[json.RawMessage], error) {
	if _, err := s.Thread(ctx, caller, session, id); err != nil {
		return api.List[json.RawMessage]{}, err
	}
	return s.ListEvents(ctx, caller, session, EventQuery{Limit: limit, Page: page})
}

// StreamEvents opens a stream of the events that enter a session's log from now
// on, with previews of the types named. The caller closes it.
func (s *Service) StreamEvents(ctx context.Context, caller Caller, session string, previews []string) (*Stream, error) {
	if len(previews) > maxPreviewTypes {
		return nil, badField("event_deltas", "List should have at most %d items", maxPreviewTypes)
	}
	for i, name := range previews {
		if name != api.EventAgentMessage && name != api.EventAgentThinking {
			return nil, badField(fmt.Sprintf("event_deltas[%d]", i), "Input should be 'agent.message' or 'agent.thinking'")
		}
	}
	if _, err := s.store.Session(ctx, caller.Workspace, session); err != nil {
		return nil, sessionFault(session, err)
	}
	stream, err := s.turns.subscribe(ctx, session, previews)
	if err != nil {
		return nil, err
	}
	// One that was deleted meanwhile would never end its stream.
	if _, err := s.store.Session(ctx, caller.Workspace, session); err != nil {
		stream.Close()
		return nil, sessionFault(session, err)
	}
	return stream, nil
}

// maxPreviewTypes is how often a stream may name a type to preview.
const maxPreviewTypes = 100

// StreamThread is StreamEvents for a thread.
func (s *Service) StreamThread(ctx context.Context, caller Caller, session, id string, previews []string) (*Stream, error) {
	if _, err := s.Thread(ctx, caller, session, id); err != nil {
		return nil, err
	}
	return s.StreamEvents(ctx, caller, session, previews)
}
