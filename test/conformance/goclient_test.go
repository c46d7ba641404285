package conformance

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	anthropic1 "github.com/anthropics/anthropic-sdk-go"
	option1 "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

func TestGoClient(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.seed(true)
	s.fill()
	ctx := t.Context()
	client := anthropic.NewClient(option.WithBaseURL(s.url), option.WithAPIKey(apiKey))
	envs := client.Beta.Environments

	made, err := envs.New(ctx, anthropic.BetaEnvironmentNewParams{
		Name:     "typed",
		Metadata: map[string]string{"team": "data", "gone": "soon"},
		Config: anthropic.BetaEnvironmentNewParamsConfigUnion{OfCloud: &anthropic.BetaCloudConfigParams{
			Networking: anthropic.BetaCloudConfigParamsNetworkingUnion{OfLimited: &anthropic.BetaLimitedNetworkParams{AllowedHosts: []string{"api.example.com"}}},
			Packages:   anthropic.BetaPackagesParams{Pip: []string{"pandas"}, Npm: []string{"express"}},
		}},
	})
	s.ok(err)
	cloud := made.Config.AsCloud()
	if hosts := cloud.Networking.AsLimited().AllowedHosts; made.Name != "typed" || len(hosts) != 1 || hosts[0] != "api.example.com" || cloud.Packages.Pip[0] != "pandas" {
		t.Errorf("created %s", made.RawJSON())
	}
	changed, err := envs.Update(ctx, made.ID, anthropic.BetaEnvironmentUpdateParams{
		Description: anthropic.String("described"), Metadata: map[string]string{"gone": "", "new": "1"},
	})
	s.ok(err)
	got, err := envs.Get(ctx, made.ID, anthropic.BetaEnvironmentGetParams{})
	s.ok(err)
	if got.RawJSON() != changed.RawJSON() || got.Description != "described" || fmt.Sprint(got.Metadata) != "map[new:1 team:data]" {
		t.Errorf("updated %s\nread %s", changed.RawJSON(), got.RawJSON())
	}

	seen := map[string]bool{}
	for pager := envs.ListAutoPaging(ctx, anthropic.BetaEnvironmentListParams{Limit: anthropic.Int(100)}); ; {
		if !pager.Next() {
			s.ok(pager.Err())
			break
		}
		seen[pager.Current().ID] = true
	}
	if len(seen) != many+2 {
		t.Errorf("paged through %d environments, want %d", len(seen), many+2)
	}

	s.take()
	refused := func(err error, status int, kind, code string) {
		t.Helper()
		var api *anthropic.Error
		if !errors.As(err, &api) {
			t.Fatalf("error %v is not typed", err)
		}
		if api.StatusCode != status || string(api.Type()) != kind || api.Details.ErrorCode != code || api.RequestID == "" || api.Message == "" {
			t.Errorf("error %d %s %q, want %d %s %q: %v", api.StatusCode, api.Type(), api.Details.ErrorCode, status, kind, code, err)
		}
	}
	_, err = envs.New(ctx, anthropic.BetaEnvironmentNewParams{Name: "typed"})
	refused(err, http.StatusConflict, "invalid_request_error", "")
	_, err = envs.Delete(ctx, fixtureEnv, anthropic.BetaEnvironmentDeleteParams{})
	refused(err, http.StatusConflict, "invalid_request_error", "")
	s.conflictsOnce(s.take(), 2)
	_, err = envs.Get(ctx, "env_01nothing", anthropic.BetaEnvironmentGetParams{})
	refused(err, http.StatusNotFound, "not_found_error", "")
	_, err = envs.New(ctx, anthropic.BetaEnvironmentNewParams{Name: ""})
	refused(err, http.StatusBadRequest, "invalid_request_error", "")
	stranger := anthropic.NewClient(option.WithBaseURL(s.url), option.WithAPIKey("sk-wrong"))
	_, err = stranger.Beta.Environments.Get(ctx, made.ID, anthropic.BetaEnvironmentGetParams{})
	refused(err, http.StatusUnauthorized, "authentication_error", "")

	archived, err := envs.Archive(ctx, made.ID, anthropic.BetaEnvironmentArchiveParams{})
	s.ok(err)
	again, err := envs.Archive(ctx, made.ID, anthropic.BetaEnvironmentArchiveParams{})
	s.ok(err)
	if archived.ArchivedAt == "" || archived.RawJSON() != again.RawJSON() {
		t.Errorf("archived %s\nagain %s", archived.RawJSON(), again.RawJSON())
	}
	_, err = envs.Update(ctx, made.ID, anthropic.BetaEnvironmentUpdateParams{Name: anthropic.String("late")})
	refused(err, http.StatusBadRequest, "invalid_request_error", "environment_archived")
	gone, err := envs.Delete(ctx, made.ID, anthropic.BetaEnvironmentDeleteParams{})
	s.ok(err)
	if gone.ID != made.ID || gone.Type != "environment_deleted" {
		t.Errorf("deleted %s", gone.RawJSON())
	}
}

func TestGoClientOfTheFirstGeneration(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.seed(true)
	s.fill()
	ctx := t.Context()
	client := anthropic1.NewClient(option1.WithBaseURL(s.url), option1.WithAPIKey(apiKey))
	envs := client.Beta.Environments

	made, err := envs.New(ctx, anthropic1.BetaEnvironmentNewParams{
		Name: "typed", Description: anthropic1.String("first generation"), Metadata: map[string]string{"team": "data"},
	})
	s.ok(err)
	if made.Config.AsCloud().Networking.Type != "unrestricted" || made.Description != "first generation" {
		t.Errorf("created %s", made.RawJSON())
	}
	changed, err := envs.Update(ctx, made.ID, anthropic1.BetaEnvironmentUpdateParams{Name: anthropic1.String("renamed")})
	s.ok(err)
	got, err := envs.Get(ctx, made.ID, anthropic1.BetaEnvironmentGetParams{})
	s.ok(err)
	if got.Name != "renamed" || got.RawJSON() != changed.RawJSON() {
		t.Errorf("updated %s\nread %s", changed.RawJSON(), got.RawJSON())
	}
	seen := map[string]bool{}
	for pager := envs.ListAutoPaging(ctx, anthropic1.BetaEnvironmentListParams{Limit: anthropic1.Int(100)}); ; {
		if !pager.Next() {
			s.ok(pager.Err())
			break
		}
		seen[pager.Current().ID] = true
	}
	if len(seen) != many+2 {
		t.Errorf("paged through %d environments, want %d", len(seen), many+2)
	}

	s.take()
	refused := func(err error, status int, kind string) {
		t.Helper()
		var api *anthropic1.Error
		if !errors.As(err, &api) {
			t.Fatalf("error %v is not typed", err)
		}
		if api.StatusCode != status || string(api.Type()) != kind || api.RequestID == "" {
			t.Errorf("error %d %s, want %d %s: %v", api.StatusCode, api.Type(), status, kind, err)
		}
	}
	_, err = envs.New(ctx, anthropic1.BetaEnvironmentNewParams{Name: "renamed"})
	refused(err, http.StatusConflict, "invalid_request_error")
	_, err = envs.Delete(ctx, fixtureEnv, anthropic1.BetaEnvironmentDeleteParams{})
	refused(err, http.StatusConflict, "invalid_request_error")
	s.conflictsOnce(s.take(), 2)
	_, err = envs.Get(ctx, "env_01nothing", anthropic1.BetaEnvironmentGetParams{})
	refused(err, http.StatusNotFound, "not_found_error")
	archived, err := envs.Archive(ctx, made.ID, anthropic1.BetaEnvironmentArchiveParams{})
	s.ok(err)
	if archived.ArchivedAt == "" {
		t.Errorf("archived %s", archived.RawJSON())
	}
	_, err = envs.Delete(ctx, made.ID, anthropic1.BetaEnvironmentDeleteParams{})
	s.ok(err)
}
