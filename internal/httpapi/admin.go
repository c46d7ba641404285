package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/atoll-run/atoll/internal/control"
)

// AdminKeys is what key management needs of the rules; *control.Service is one.
type AdminKeys interface {
	ListWorkspaces(ctx context.Context) ([]control.Workspace, error)
	CreateKey(ctx context.Context, workspace, name string, kind control.KeyKind, sandbase bool) (secret string, key control.Key, err error)
	ListKeys(ctx context.Context, workspace string) ([]control.Key, error)
	RevokeKey(ctx context.Context, workspace, id string) error
	CreateWorkspace(ctx context.Context, name string, maxSessions int) (control.Workspace, error)
	LimitWorkspace(ctx context.Context, id string, maxSessions int) error
	ArchiveWorkspace(ctx context.Context, id string) error
}

// AdminWorkspace is a workspace as the operator sees it.
type AdminWorkspace struct {
	// ID is what logs and records name the workspace by.
	ID string `json:"id"`
	// Name is for people, and for commands in the place of the id.
	Name string `json:"name"`
	// CreatedAt is when it was made.
	CreatedAt time.Time `json:"created_at"`
	// ArchivedAt is null while its keys open it.
	ArchivedAt *time.Time `json:"archived_at"`
	// MaxSessions is how many sessions that are not archived it may have; 0: as
	// many as the server admits.
	MaxSessions int `json:"max_sessions"`
}

// AdminWorkspaceCreate is the body of a workspace's creation.
type AdminWorkspaceCreate struct {
	// Name has 1 to 256 characters and is no other workspace's.
	Name string `json:"name"`
	// MaxSessions is as in AdminWorkspace.
	MaxSessions int `json:"max_sessions"`
}

// AdminWorkspaceLimits is the body of a change of a workspace's limits.
type AdminWorkspaceLimits struct {
	// MaxSessions is as in AdminWorkspace.
	MaxSessions int `json:"max_sessions"`
}

// AdminKey is a key as the operator sees it. Secret is set once, in the reply
// to its creation.
type AdminKey struct {
	// ID names the key in revocations; it is not the secret.
	ID string `json:"id"`
	// Name is for people.
	Name string `json:"name"`
	// Kind says what the key is for.
	Kind string `json:"kind"`
	// Hint is the last four characters of the secret.
	Hint string `json:"hint"`
	// CreatedAt is when the key was made.
	CreatedAt time.Time `json:"created_at"`
	// RevokedAt is null while the key is valid.
	RevokedAt *time.Time `json:"revoked_at"`
	// Secret is there in the reply to a create only.
	Secret string `json:"secret,omitempty"`
}

// AdminCreate is the body of a key's creation.
type AdminCreate struct {
	// Workspace is an id or a name; empty means the default one.
	Workspace string `json:"workspace"`
	// Name has 1 to 256 characters.
	Name string `json:"name"`
	// SandBase makes a key that speaks SandBase's dialect.
	SandBase bool `json:"sandbase"`
}

// AdminCache is what cache management needs; *control.Cache is one.
type AdminCache interface {
	State(ctx context.Context) (control.CacheState, error)
	Prune(ctx context.Context) (control.CachePruned, error)
	Drop(ctx context.Context, key string) (control.CacheDropped, error)
	RaiseEpoch(ctx context.Context, workspace string) (control.CacheEpoch, error)
}

// AdminReload takes up a changed configuration.
type AdminReload interface {
	Reload(ctx context.Context) (AdminReloaded, error)
}

// AdminReloaded is what came of a reload.
type AdminReloaded struct {
	// Sessions whose network policy changed.
	Sessions int `json:"sessions"`
	// NeedRestart names settings that differ and were not taken up.
	NeedRestart []string `json:"need_restart"`
}

// Admin answers key and cache management for the operator's command line. It asks for no
// credential and must only be served on a socket that the operator alone can
// open. Workspaces are given by name or id.
//
//	GET  /keys?workspace=         lists keys, revoked ones included
//	POST /keys                    makes one of an AdminCreate
//	POST /keys/{id}/revoke        revokes one (?workspace=)
//	GET  /workspaces              lists workspaces, archived ones included
//	POST /workspaces              makes one of an AdminWorkspaceCreate
//	POST /workspaces/{id}/limits  sets its AdminWorkspaceLimits, by name or id
//	POST /workspaces/{id}/archive archives one, by name or id; 409 while it has sessions
//	GET  /cache                   lists the package layers
//	POST /cache/prune             removes those that nothing uses
//	POST /cache/layers/{key}/drop removes one and those above it; 409 if it is in use
//	POST /cache/epoch             raises the epoch of a workspace's layers (?workspace=)
//	POST /reload                  takes up a changed configuration
func Admin(keys AdminKeys, cache AdminCache, reload AdminReload) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return AdminList(r.Context(), keys, r.URL.Query().Get("workspace")) })
	})
	mux.HandleFunc("POST /keys", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) {
			var in AdminCreate
			if err := adminBody(r, &in); err != nil {
				return nil, err
			}
			return AdminMake(r.Context(), keys, in)
		})
	})
	mux.HandleFunc("POST /keys/{id}/revoke", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) {
			return struct{}{}, AdminRevoke(r.Context(), keys, r.URL.Query().Get("workspace"), r.PathValue("id"))
		})
	})
	mux.HandleFunc("GET /workspaces", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return AdminWorkspaces(r.Context(), keys) })
	})
	mux.HandleFunc("POST /workspaces", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) {
			var in AdminWorkspaceCreate
			if err := adminBody(r, &in); err != nil {
				return nil, err
			}
			ws, err := keys.CreateWorkspace(r.Context(), in.Name, in.MaxSessions)
			return adminWorkspaceOf(ws), err
		})
	})
	mux.HandleFunc("POST /workspaces/{id}/limits", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) {
			var in AdminWorkspaceLimits
			if err := adminBody(r, &in); err != nil {
				return nil, err
			}
			return struct{}{}, AdminLimit(r.Context(), keys, r.PathValue("id"), in)
		})
	})
	mux.HandleFunc("POST /workspaces/{id}/archive", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return struct{}{}, AdminArchive(r.Context(), keys, r.PathValue("id")) })
	})
	mux.HandleFunc("GET /cache", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return cache.State(r.Context()) })
	})
	mux.HandleFunc("POST /cache/prune", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return cache.Prune(r.Context()) })
	})
	mux.HandleFunc("POST /cache/layers/{key}/drop", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return cache.Drop(r.Context(), r.PathValue("key")) })
	})
	mux.HandleFunc("POST /cache/epoch", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return cache.RaiseEpoch(r.Context(), r.URL.Query().Get("workspace")) })
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		adminReply(w, func() (any, error) { return reload.Reload(r.Context()) })
	})
	return wholeBodies(mux, adminBodyWait)
}

// AdminList lists the keys of a workspace.
func AdminList(ctx context.Context, keys AdminKeys, workspace string) ([]AdminKey, error) {
	id, err := adminWorkspace(ctx, keys, workspace)
	if err != nil {
		return nil, err
	}
	all, err := keys.ListKeys(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make([]AdminKey, 0, len(all))
	for _, key := range all {
		out = append(out, adminKey(key, ""))
	}
	return out, nil
}

// AdminMake makes a key and answers it with its secret.
func AdminMake(ctx context.Context, keys AdminKeys, in AdminCreate) (AdminKey, error) {
	id, err := adminWorkspace(ctx, keys, in.Workspace)
	if err != nil {
		return AdminKey{}, err
	}
	secret, key, err := keys.CreateKey(ctx, id, in.Name, control.KeyAPI, in.SandBase)
	if err != nil {
		return AdminKey{}, err
	}
	return adminKey(key, secret), nil
}

// AdminRevoke ends a key for good.
func AdminRevoke(ctx context.Context, keys AdminKeys, workspace, key string) error {
	id, err := adminWorkspace(ctx, keys, workspace)
	if err != nil {
		return err
	}
	return keys.RevokeKey(ctx, id, key)
}

// AdminWorkspaces lists all workspaces.
func AdminWorkspaces(ctx context.Context, keys AdminKeys) ([]AdminWorkspace, error) {
	all, err := keys.ListWorkspaces(ctx)
	out := make([]AdminWorkspace, 0, len(all))
	for _, ws := range all {
		out = append(out, adminWorkspaceOf(ws))
	}
	return out, err
}

// AdminLimit sets the limits of a workspace, given by name or id.
func AdminLimit(ctx context.Context, keys AdminKeys, workspace string, limits AdminWorkspaceLimits) error {
	id, err := adminWorkspace(ctx, keys, workspace)
	if err != nil {
		return err
	}
	return keys.LimitWorkspace(ctx, id, limits.MaxSessions)
}

// AdminArchive archives a workspace, given by name or id.
func AdminArchive(ctx context.Context, keys AdminKeys, workspace string) error {
	id, err := adminWorkspace(ctx, keys, workspace)
	if err != nil {
		return err
	}
	return keys.ArchiveWorkspace(ctx, id)
}

func adminWorkspaceOf(ws control.Workspace) AdminWorkspace {
	out := AdminWorkspace{ID: ws.ID, Name: ws.Name, CreatedAt: ws.CreatedAt, MaxSessions: ws.MaxSessions}
	if !ws.ArchivedAt.IsZero() {
		out.ArchivedAt = &ws.ArchivedAt
	}
	return out
}

// adminBody reads a request's body, in which every field is known.
func adminBody(r *http.Request, into any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return control.Faultf(control.Invalid, "reading the request: %v", err)
	}
	return nil
}

func adminWorkspace(ctx context.Context, keys AdminKeys, nameOrID string) (string, error) {
	all, err := keys.ListWorkspaces(ctx)
	if err != nil {
		return "", err
	}
	for _, ws := range all {
		if ws.ID == nameOrID || ws.Name == nameOrID {
			return ws.ID, nil
		}
	}
	return "", control.Faultf(control.NotFound, "there is no workspace %q", nameOrID)
}

func adminKey(key control.Key, secret string) AdminKey {
	out := AdminKey{ID: key.ID, Name: key.Name, Kind: string(key.Kind), Hint: key.Hint, CreatedAt: key.CreatedAt, Secret: secret}
	if !key.RevokedAt.IsZero() {
		out.RevokedAt = &key.RevokedAt
	}
	return out
}

// adminReply writes what do answers. The caller is the operator, so that an
// internal error is told in full.
func adminReply(w http.ResponseWriter, do func() (any, error)) {
	status := http.StatusOK
	body, err := do()
	if err != nil {
		status, body = http.StatusInternalServerError, nil
		if fault, ok := control.AsFault(err); ok {
			status = http.StatusBadRequest
			switch fault.Kind {
			case control.NotFound:
				status = http.StatusNotFound
			case control.Conflict:
				status = http.StatusConflict
			}
		}
		message := struct {
			Type  string         `json:"type"`
			Error map[string]any `json:"error"`
		}{"error", map[string]any{"type": "api_error", "message": err.Error()}}
		body = message
	}
	content, err := json.Marshal(body)
	if err != nil {
		panic(errors.Join(errors.New("encoding an admin reply"), err)) // the types above always encode
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(content) // the operator's command went away
}
