package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/atoll-run/atoll/api"
)

// maxEnvironment is how large an environment may be, as its reply, in bytes.
const maxEnvironment = 64 << 10

// environmentDocument is what a record holds beside its columns.
type environmentDocument struct {
	Description *string           `json:"description"`
	Config      api.Config        `json:"config"`
	Metadata    map[string]string `json:"metadata"`
	Scope       string            `json:"scope"`
}

func (d environmentDocument) encode() ([]byte, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("writing an environment's document: %w", err)
	}
	return text, nil
}

func readEnvironment(rec EnvironmentRecord) (environmentDocument, error) {
	var d environmentDocument
	if err := json.Unmarshal(rec.Document, &d); err != nil {
		return d, fmt.Errorf("reading the document of %s: %w", rec.ID, err)
	}
	return d, nil
}

// EnvironmentConfig returns the config of a stored environment.
func EnvironmentConfig(rec EnvironmentRecord) (api.Config, error) {
	d, err := readEnvironment(rec)
	return d.Config, err
}

// environmentReply is a record as the wire shows it.
func environmentReply(rec EnvironmentRecord) (api.Environment, error) {
	d, err := readEnvironment(rec)
	if err != nil {
		return api.Environment{}, err
	}
	return api.Environment{
		ID: rec.ID, Type: "environment", Name: rec.Name, Description: d.Description,
		Config: d.Config, Metadata: d.Metadata, Scope: d.Scope, ArchivedAt: api.NullTime(rec.ArchivedAt),
		CreatedAt: api.Time{Time: rec.CreatedAt}, UpdatedAt: api.Time{Time: rec.UpdatedAt},
	}, nil
}

// CreateEnvironment makes an environment. Its packages are built in the
// background.
func (s *Service) CreateEnvironment(ctx context.Context, caller Caller, req api.EnvironmentCreate) (api.Environment, error) {
	d := environmentDocument{Description: orNull(req.Description), Metadata: req.Metadata.Or(nil), Scope: "organization"}
	if d.Metadata == nil {
		d.Metadata = map[string]string{}
	}
	err := errors.Join(
		checkLength("name", req.Name, 1, 256),
		checkOptional("description", req.Description, 0, 1024),
		checkScope(req.Scope))
	if err != nil {
		return api.Environment{}, first(err)
	}
	if d.Config, err = s.newConfig(req.Config); err != nil {
		return api.Environment{}, err
	}
	now := s.clock()
	rec := EnvironmentRecord{
		ID: s.ids.make("env_", now), Workspace: caller.Workspace, Name: req.Name,
		CreatedAt: now, UpdatedAt: now,
	}
	if err := setEnvironment(&rec, d); err != nil {
		return api.Environment{}, err
	}
	if err := s.store.CreateEnvironment(ctx, rec); err != nil {
		return api.Environment{}, environmentFault(rec.ID, rec.Name, err)
	}
	if s.runtime != nil {
		s.runtime.EnvironmentChanged(rec)
	}
	return environmentReply(rec)
}

// setEnvironment writes the document into the record, unless the resource gets
// too large.
func setEnvironment(rec *EnvironmentRecord, d environmentDocument) error {
	text, err := d.encode()
	if err != nil {
		return err
	}
	rec.Document = text
	reply, err := environmentReply(*rec)
	if err != nil {
		return err
	}
	whole, err := json.Marshal(reply)
	if err != nil {
		return fmt.Errorf("measuring an environment: %w", err)
	}
	if len(whole) > maxEnvironment {
		return Faultf(Invalid, "The environment is too large: %d bytes as JSON, at most %d are allowed", len(whole), maxEnvironment)
	}
	return nil
}

// Environment returns an environment, archived or not.
func (s *Service) Environment(ctx context.Context, caller Caller, id string) (api.Environment, error) {
	rec, err := s.store.Environment(ctx, caller.Workspace, id)
	if err != nil {
		return api.Environment{}, environmentFault(id, "", err)
	}
	return environmentReply(rec)
}

// UpdateEnvironment merges the request into an environment that is not
// archived. An update that changes nothing leaves updated_at alone. Sandboxes
// that run keep what they started with.
func (s *Service) UpdateEnvironment(ctx context.Context, caller Caller, id string, req api.EnvironmentUpdate) (api.Environment, error) {
	err := errors.Join(
		checkOptional("name", req.Name, 1, 256),
		checkOptional("description", req.Description, 0, 1024),
		checkScope(req.Scope))
	if err != nil {
		return api.Environment{}, first(err)
	}
	configChanged := false
	rec, err := s.store.UpdateEnvironment(ctx, caller.Workspace, id, func(rec *EnvironmentRecord) (bool, error) {
		var err error
		var altered bool
		altered, configChanged, err = s.patchEnvironment(rec, req)
		return altered, err
	})
	if err != nil {
		return api.Environment{}, environmentFault(id, req.Name.Value, err)
	}
	if configChanged && s.runtime != nil {
		s.runtime.EnvironmentChanged(rec)
	}
	return environmentReply(rec)
}

func (s *Service) patchEnvironment(rec *EnvironmentRecord, req api.EnvironmentUpdate) (altered, configChanged bool, err error) {
	if !rec.ArchivedAt.IsZero() {
		return false, false, &Fault{Kind: Invalid, Code: "environment_archived", Message: "Environment " + rec.ID + " is archived."}
	}
	d, err := readEnvironment(*rec)
	if err != nil {
		return false, false, err
	}
	before, name := rec.Document, rec.Name
	config, err := json.Marshal(d.Config)
	if err != nil {
		return false, false, fmt.Errorf("writing a config: %w", err)
	}
	rec.Name = req.Name.Or(rec.Name)
	if req.Description.Set {
		d.Description = orNull(req.Description)
	}
	if req.Metadata.Given() {
		d.Metadata = mergeMetadata(d.Metadata, req.Metadata.Value, true)
	}
	if req.Config.Given() {
		if err := s.patchConfig(&d.Config, req.Config.Value); err != nil {
			return false, false, err
		}
	}
	if err := setEnvironment(rec, d); err != nil {
		return false, false, err
	}
	if rec.Name == name && bytes.Equal(rec.Document, before) {
		return false, false, nil
	}
	after, err := json.Marshal(d.Config)
	if err != nil {
		return false, false, fmt.Errorf("writing a config: %w", err)
	}
	rec.UpdatedAt = s.clock()
	return true, !bytes.Equal(config, after), nil
}

// ArchiveEnvironment makes an environment read-only: no new sessions, the
// existing ones go on. Repeating it changes nothing.
func (s *Service) ArchiveEnvironment(ctx context.Context, caller Caller, id string) (api.Environment, error) {
	altered := false
	rec, err := s.store.UpdateEnvironment(ctx, caller.Workspace, id, func(rec *EnvironmentRecord) (bool, error) {
		if altered = rec.ArchivedAt.IsZero(); altered {
			rec.ArchivedAt = s.clock()
			rec.UpdatedAt = rec.ArchivedAt
		}
		return altered, nil
	})
	if err != nil {
		return api.Environment{}, environmentFault(id, "", err)
	}
	if altered && s.runtime != nil {
		s.runtime.EnvironmentChanged(rec)
	}
	return environmentReply(rec)
}

// DeleteEnvironment removes an environment that no session refers to.
func (s *Service) DeleteEnvironment(ctx context.Context, caller Caller, id string) (api.Deleted, error) {
	if err := s.store.DeleteEnvironment(ctx, caller.Workspace, id); err != nil {
		return api.Deleted{}, environmentFault(id, "", err)
	}
	if s.runtime != nil {
		s.runtime.EnvironmentDeleted(id)
	}
	return api.Deleted{ID: id, Type: "environment_deleted"}, nil
}

// EnvironmentQuery asks for a page of environments.
type EnvironmentQuery struct {
	Limit api.Opt[int] // 1–1000, 20 when absent
	Page  string       // a cursor of an earlier page, or empty
	// IncludeArchived lists archived environments too.
	IncludeArchived bool
}

// ListEnvironments lists environments, newest first.
func (s *Service) ListEnvironments(ctx context.Context, caller Caller, q EnvironmentQuery) (api.List[api.Environment], error) {
	list := api.List[api.Environment]{Data: []api.Environment{}}
	limit, err := pageLimit(q.Limit, 1000)
	if err != nil {
		return list, err
	}
	scope := cursorScope("environments", caller, q.IncludeArchived)
	from, err := readCursor(q.Page, scope)
	if err != nil {
		return list, err
	}
	recs, more, err := s.store.ListEnvironments(ctx, caller.Workspace, q.IncludeArchived, from.page(limit, false))
	if err != nil {
		return list, err
	}
	for _, rec := range recs {
		reply, err := environmentReply(rec)
		if err != nil {
			return list, err
		}
		list.Data = append(list.Data, reply)
	}
	if more && len(recs) > 0 {
		last := recs[len(recs)-1]
		list.NextPage = at(scope, last.CreatedAt, last.ID, false)
	}
	return list, nil
}

// environmentFault translates a Store's errors.
func environmentFault(id, name string, err error) error {
	switch {
	case errors.Is(err, ErrNoRecord):
		return &Fault{Kind: NotFound, Message: "Environment " + printable(id) + " not found.", Cause: err}
	case errors.Is(err, ErrDuplicate):
		return &Fault{Kind: Conflict, Message: fmt.Sprintf("An environment with the name %q already exists.", name), Cause: err}
	case errors.Is(err, ErrInUse):
		return &Fault{Kind: Conflict, Message: "Environment " + printable(id) + " is in use by sessions. Delete them first.", Cause: err}
	}
	return err
}
