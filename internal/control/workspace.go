package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// defaultWorkspace is the name of the workspace that every server has.
const defaultWorkspace = "default"

// CreateWorkspace makes a workspace, which nothing opens until it has a key, for
// at most maxSessions sessions that are not archived; 0 bounds nothing. Its name has 1 to 256 characters and is no other's; a name that begins like an id
// is refused, because commands take either.
func (s *Service) CreateWorkspace(ctx context.Context, name string, maxSessions int) (Workspace, error) {
	if err := errors.Join(checkLength("name", name, 1, 256), checkMaxSessions(maxSessions)); err != nil {
		return Workspace{}, first(err)
	}
	if strings.HasPrefix(name, workspacePrefix) {
		return Workspace{}, badField("name", "String should not begin with '%s'", workspacePrefix)
	}
	now := s.clock()
	ws := Workspace{ID: s.ids.make(workspacePrefix, now), Name: name, CreatedAt: now, MaxSessions: maxSessions}
	err := s.store.CreateWorkspace(ctx, ws)
	if errors.Is(err, ErrDuplicate) {
		return Workspace{}, &Fault{Kind: Conflict, Message: fmt.Sprintf("A workspace with the name %q already exists.", name), Cause: err}
	}
	return ws, err
}

// LimitWorkspace sets how many sessions that are not archived a workspace may
// have; 0 bounds nothing. Those that are beyond it go on.
func (s *Service) LimitWorkspace(ctx context.Context, id string, maxSessions int) error {
	if err := checkMaxSessions(maxSessions); err != nil {
		return err
	}
	err := s.store.LimitWorkspace(ctx, id, maxSessions)
	if errors.Is(err, ErrNoRecord) {
		return &Fault{Kind: NotFound, Message: "Workspace " + printable(id) + " not found.", Cause: err}
	}
	return err
}

func checkMaxSessions(n int) error {
	if n < 0 || n > maxVersion {
		return badField("max_sessions", "Input should be between 0 and %d", maxVersion)
	}
	return nil
}

const workspacePrefix = "wrkspc_"

// ListWorkspaces lists all workspaces, archived ones included, oldest first.
func (s *Service) ListWorkspaces(ctx context.Context) ([]Workspace, error) {
	return s.store.ListWorkspaces(ctx)
}

// ArchiveWorkspace closes a workspace for good: its keys open nothing from the
// next request on, and it gets no new ones. What is in it stays. One with a
// session that is not archived is refused, for nobody could end that session
// any more, and so is the default workspace. A second call changes nothing.
func (s *Service) ArchiveWorkspace(ctx context.Context, id string) error {
	all, err := s.store.ListWorkspaces(ctx)
	if err != nil {
		return err
	}
	for _, ws := range all {
		if ws.ID == id && ws.Name == defaultWorkspace {
			return Faultf(Invalid, "The default workspace cannot be archived.")
		}
	}
	err = s.store.ArchiveWorkspace(ctx, id, s.clock())
	switch {
	case errors.Is(err, ErrNoRecord):
		return &Fault{Kind: NotFound, Message: "Workspace " + printable(id) + " not found.", Cause: err}
	case errors.Is(err, ErrInUse):
		return &Fault{Kind: Conflict, Message: "Workspace " + printable(id) + " has sessions that are not archived. Archive or delete them first.", Cause: err}
	}
	return err
}
