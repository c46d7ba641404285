package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/image"
)

// BuildStatus tells how the newest build of an environment stands.
func (s *Sandboxes) BuildStatus(ctx context.Context, caller Caller, environment string) (api.Build, error) {
	if _, err := s.cloudEnvironment(ctx, caller, environment); err != nil {
		return api.Build{}, err
	}
	return s.builds.status(ctx, environment)
}

// Rebuild builds an environment's layers again, taking new versions of what is
// not pinned. Sandboxes made before keep what they have.
func (s *Sandboxes) Rebuild(ctx context.Context, caller Caller, environment string) (api.Build, error) {
	rec, err := s.cloudEnvironment(ctx, caller, environment)
	if err != nil {
		return api.Build{}, err
	}
	if !rec.ArchivedAt.IsZero() {
		return api.Build{}, Faultf(Invalid, "Environment %s is archived.", rec.ID)
	}
	config, err := EnvironmentConfig(rec)
	if err != nil {
		return api.Build{}, err
	}
	run := s.builds.start(rec.ID, s.builds.wishOf(config.Cloud), startOptions{record: true, fresh: true})
	return run.status(), nil
}

// BuildLog writes the log of the newest build from an offset (a number of
// lines) on; with follow it goes on until the build has ended or write fails.
func (s *Sandboxes) BuildLog(ctx context.Context, caller Caller, environment string, offset int64, follow bool, write func([]byte) error) error {
	if _, err := s.cloudEnvironment(ctx, caller, environment); err != nil {
		return err
	}
	run := s.builds.current(environment)
	if run == nil {
		return s.builds.storedLog(ctx, environment, offset, write)
	}
	for at := int(max(0, offset)); ; {
		lines, next, complete, changed := run.read(at)
		at = next
		var text bytes.Buffer
		for _, l := range lines {
			text.WriteString(l + "\n")
		}
		if text.Len() > 0 {
			if err := write(text.Bytes()); err != nil {
				return fmt.Errorf("writing the log: %w", err)
			}
		}
		if complete || !follow {
			return nil
		}
		select {
		case <-changed:
		case <-run.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Templates lists the templates that environments may choose.
func (s *Sandboxes) Templates(_ context.Context, _ Caller) ([]api.Template, error) {
	manifests, err := s.builds.templates.List()
	if err != nil {
		return nil, fmt.Errorf("listing templates: %w", err)
	}
	out := make([]api.Template, 0, len(manifests))
	for _, m := range manifests {
		out = append(out, templateOf(m))
	}
	return out, nil
}

// templateOf is a template on the wire.
func templateOf(m image.Manifest) api.Template {
	t := api.Template{Name: m.Template, Description: m.Description, Status: "declared", Digest: m.Digest, SizeBytes: m.SizeBytes,
		Registries: []api.TemplateRegistry{}, Managers: m.Managers, Runtimes: m.Runtimes}
	if m.Digest != "" {
		t.Status = "built"
	}
	for _, r := range m.Registries {
		t.Registries = append(t.Registries, api.TemplateRegistry{Manager: r.Manager, Host: r.Host, Port: r.Port, How: r.How})
	}
	return t
}

// cloudEnvironment reads an environment of the caller that has builds.
func (s *Sandboxes) cloudEnvironment(ctx context.Context, caller Caller, id string) (EnvironmentRecord, error) {
	rec, err := s.store.Environment(ctx, caller.Workspace, id)
	if errors.Is(err, ErrNoRecord) {
		return rec, &Fault{Kind: NotFound, Message: "Environment " + printable(id) + " not found.", Cause: err}
	}
	if err != nil {
		return rec, err
	}
	config, err := EnvironmentConfig(rec)
	if err != nil {
		return rec, err
	}
	if config.Cloud == nil {
		return rec, Faultf(Invalid, "Environment %s is self_hosted; this server builds nothing for it.", rec.ID)
	}
	return rec, nil
}

// status answers from the running build or from the record.
func (b *Builds) status(ctx context.Context, environment string) (api.Build, error) {
	if run := b.current(environment); run != nil {
		return run.status(), nil
	}
	rec, err := b.store.Build(ctx, environment)
	if errors.Is(err, ErrNoRecord) {
		return api.Build{Type: "environment_build", EnvironmentID: environment, Status: api.BuildNone, Layers: []api.BuildLayer{}}, nil
	}
	if err != nil {
		return api.Build{}, fmt.Errorf("reading the build of %s: %w", environment, err)
	}
	var out api.Build
	if err := json.Unmarshal(rec.Document, &out); err != nil {
		return api.Build{}, fmt.Errorf("reading the build of %s: %w", environment, err)
	}
	return out, nil
}

// storedLog writes the logs of an environment's layers, kept beside them.
func (b *Builds) storedLog(ctx context.Context, environment string, offset int64, write func([]byte) error) error {
	rec, err := b.store.Build(ctx, environment)
	if errors.Is(err, ErrNoRecord) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the build of %s: %w", environment, err)
	}
	var lines [][]byte
	for _, key := range rec.Layers {
		text, err := b.builder.Store().Log(key)
		if err != nil {
			return fmt.Errorf("reading the log of a layer: %w", err)
		}
		lines = append(lines, slices.Collect(bytes.Lines(text))...)
	}
	lines = lines[min(int64(len(lines)), max(0, offset)):]
	if len(lines) == 0 {
		return nil
	}
	return write(bytes.Join(lines, nil))
}
