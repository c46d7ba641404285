package control

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
)

// sandbasePrefix begins the secrets of keys that speak SandBase's dialect.
const sandbasePrefix = "sk-sb-"

// DialectOf is the dialect of a presented secret, valid or not.
func DialectOf(secret string) Dialect {
	if strings.HasPrefix(secret, sandbasePrefix) {
		return DialectSandBase
	}
	return DialectAnthropic
}

// extraKey is a key that the operator's environment gives, kept in memory only.
type extraKey struct {
	hash      [32]byte
	workspace string
}

// Authenticate tells who presents a secret. Every failure is the same
// Unauthenticated fault. A revoked key fails from the next call on.
func (s *Service) Authenticate(ctx context.Context, secret string) (Caller, error) {
	refused := &Fault{Kind: Unauthenticated, Message: "Authentication failed"}
	if secret == "" {
		return Caller{}, refused
	}
	hash := sha256.Sum256([]byte(secret))
	if extra := s.extra.Load(); extra != nil && subtle.ConstantTimeCompare(extra.hash[:], hash[:]) == 1 {
		return Caller{Workspace: extra.workspace, KeyID: "environment", Kind: KeyAPI, Dialect: DialectOf(secret)}, nil
	}
	// The store is searched by the hash of what was presented, so the time it
	// takes tells nothing about a stored secret.
	key, err := s.store.KeyByHash(ctx, hash)
	switch {
	case errors.Is(err, ErrNoRecord):
		return Caller{}, refused
	case err != nil:
		return Caller{}, err
	case subtle.ConstantTimeCompare(key.Hash[:], hash[:]) != 1 || !key.RevokedAt.IsZero():
		return Caller{}, refused
	}
	return Caller{Workspace: key.Workspace, KeyID: key.ID, Kind: key.Kind, Dialect: DialectOf(secret)}, nil
}

// CreateKey makes a key of a workspace. The secret is returned this once and
// stored as a hash only. A SandBase key speaks that dialect.
func (s *Service) CreateKey(ctx context.Context, workspace, name string, kind KeyKind, sandbase bool) (secret string, key Key, err error) {
	if err := checkLength("name", name, 1, 256); err != nil {
		return "", Key{}, err
	}
	if kind != KeyAPI {
		return "", Key{}, unsupported("kind " + string(kind))
	}
	secret, key = s.newKey(workspace, name, kind, sandbase)
	if err := s.store.CreateKey(ctx, key); err != nil {
		return "", Key{}, keyFault(err)
	}
	return secret, key, nil
}

// newKey draws a key that is not stored yet.
func (s *Service) newKey(workspace, name string, kind KeyKind, sandbase bool) (secret string, key Key) {
	secret = "sk-atoll-"
	if sandbase {
		secret = sandbasePrefix
	}
	var random [32]byte // 190 bits
	randomBase62(random[:])
	secret += string(random[:])
	now := s.clock()
	return secret, Key{
		ID: s.ids.make("apikey_", now), Workspace: workspace, Name: name, Kind: kind,
		Hash: sha256.Sum256([]byte(secret)), Hint: secret[len(secret)-4:], CreatedAt: now,
	}
}

// ListKeys lists a workspace's keys, revoked ones included.
func (s *Service) ListKeys(ctx context.Context, workspace string) ([]Key, error) {
	return s.store.ListKeys(ctx, workspace)
}

// RevokeKey ends a key at once and for good.
func (s *Service) RevokeKey(ctx context.Context, workspace, id string) error {
	return keyFault(s.store.RevokeKey(ctx, workspace, id, s.clock()))
}

// EnsureDefault makes the default workspace and a key of it on the first start.
// leave gets that key's secret before the key counts, so that a first start that
// ends anywhere leaves no key whose secret nobody has: the next start makes
// another. On later starts leave is not called. extra, when not empty, is
// accepted as a key of the default workspace while this process lives. Call it
// once, before the first request.
func (s *Service) EnsureDefault(ctx context.Context, extra string, leave func(secret string) error) (workspace string, err error) {
	workspaces, err := s.store.ListWorkspaces(ctx)
	if err != nil {
		return "", err
	}
	for _, ws := range workspaces {
		if ws.Name == defaultWorkspace {
			workspace = ws.ID
		}
	}
	if workspace == "" {
		now := s.clock()
		workspace = s.ids.make(workspacePrefix, now)
		if err := s.store.CreateWorkspace(ctx, Workspace{ID: workspace, Name: defaultWorkspace, CreatedAt: now}); err != nil {
			return "", err
		}
	}
	keys, err := s.store.ListKeys(ctx, workspace)
	if err != nil {
		return "", err
	}
	if len(keys) == 0 {
		secret, key := s.newKey(workspace, "default", KeyAPI, false)
		if err := leave(secret); err != nil {
			return "", fmt.Errorf("leaving the first API key: %w", err)
		}
		if err := s.store.CreateKey(ctx, key); err != nil {
			return "", err
		}
	}
	if extra != "" {
		s.extra.Store(&extraKey{hash: sha256.Sum256([]byte(extra)), workspace: workspace})
	}
	return workspace, nil
}

func keyFault(err error) error {
	if errors.Is(err, ErrStale) {
		return &Fault{Kind: Invalid, Message: "The workspace is archived: it gets no new keys.", Cause: err}
	}
	if errors.Is(err, ErrNoRecord) {
		return &Fault{Kind: NotFound, Message: "Key or workspace not found.", Cause: err}
	}
	return err
}
