package control_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store"
)

func open(t *testing.T, path string) (*control.Service, *store.Store) {
	t.Helper()
	db, err := store.Open(context.Background(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // a second close is harmless
	return control.New(control.Config{Store: db}), db
}

// TestEnsureDefault: one workspace and one key on the first start, none later,
// and the operator's extra key only while it is given.
func TestEnsureDefault(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "atoll.db")
	s, db := open(t, path)
	var secret string
	lost := errors.New("no room for the file")
	workspace, err := s.EnsureDefault(ctx, "extra", func(string) error { return lost })
	if !errors.Is(err, lost) || workspace != "" {
		t.Fatalf("a secret that could not be left: %q, %v", workspace, err)
	}
	leave := func(s string) error { secret = s; return nil }
	workspace, err = s.EnsureDefault(ctx, "extra", leave)
	if err != nil || !strings.HasPrefix(secret, "sk-atoll-") || !strings.HasPrefix(workspace, "wrkspc_01") {
		t.Fatalf("%q %q %v", workspace, secret, err)
	}
	for _, known := range []string{secret, "extra"} {
		caller, err := s.Authenticate(ctx, known)
		if err != nil || caller.Workspace != workspace || caller.Kind != control.KeyAPI || caller.Dialect != control.DialectAnthropic {
			t.Errorf("%+v, %v", caller, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, path)
	again, err := s.EnsureDefault(ctx, "", func(string) error { return errors.New("a second key") })
	if err != nil || again != workspace {
		t.Errorf("second start: %q %v", again, err)
	}
	if _, err := s.Authenticate(ctx, secret); err != nil {
		t.Error(err)
	}
	for _, unknown := range []string{"extra", "", secret[1:], secret + " ", strings.ToLower(secret)} {
		_, err := s.Authenticate(ctx, unknown)
		if fault, ok := control.AsFault(err); !ok || fault.Kind != control.Unauthenticated || fault.Message != "Authentication failed" {
			t.Errorf("%q: %v", unknown, err)
		}
	}
}

func TestCreateKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, _ := open(t, filepath.Join(t.TempDir(), "atoll.db"))
	workspace, err := s.EnsureDefault(ctx, "sk-sb-extra", func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	secret, key, err := s.CreateKey(ctx, workspace, "sb", control.KeyAPI, true)
	if err != nil || !strings.HasPrefix(secret, "sk-sb-") {
		t.Fatal(secret, err)
	}
	for _, sb := range []string{secret, "sk-sb-extra"} {
		if caller, err := s.Authenticate(ctx, sb); err != nil || caller.Dialect != control.DialectSandBase {
			t.Errorf("%+v, %v", caller, err)
		}
	}
	for i := range key.Hash {
		if key.Hash[i] != 0 {
			break
		}
		if i == len(key.Hash)-1 {
			t.Error("no hash")
		}
	}
	for _, bad := range []struct {
		workspace, name string
		kind            control.KeyKind
		want            control.Kind
	}{
		{workspace, "", control.KeyAPI, control.Invalid},
		{workspace, "x", control.KeyEnvironment, control.Invalid},
		{"wrkspc_x", "x", control.KeyAPI, control.NotFound},
	} {
		_, _, err := s.CreateKey(ctx, bad.workspace, bad.name, bad.kind, false)
		if fault, ok := control.AsFault(err); !ok || fault.Kind != bad.want {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := s.RevokeKey(ctx, "wrkspc_x", key.ID); err == nil {
		t.Error("a key of another workspace can be revoked")
	}
}
