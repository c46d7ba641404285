package control

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/atoll-run/atoll/api"
	"github.com/atoll-run/atoll/internal/image"
)

// BuildStatus tells how the newest build of an environment stands.
func (s *Sandboxes) BuildStatus(ctx context.Context, caller Caller, environment string) (api.Build, error) {
	rec, config, err := s.cloudEnvironment(ctx, caller, environment)
	if err != nil {
		return api.Build{}, err
	}
	w, err := s.builds.wishOf(ctx, rec.Workspace, config)
	if err != nil {
		return api.Build{}, err
	}
	return s.builds.status(ctx, rec, w)
}

// Rebuild builds an environment's layers again, taking new versions of what is
// not pinned. Sandboxes made before keep what they have.
func (s *Sandboxes) Rebuild(ctx context.Context, caller Caller, environment string) (api.Build, error) {
	rec, config, err := s.cloudEnvironment(ctx, caller, environment)
	if err != nil {
		return api.Build{}, err
	}
	if !rec.ArchivedAt.IsZero() {
		return api.Build{}, Faultf(Invalid, "Environment %s is archived.", rec.ID)
	}
	w, err := s.builds.wishOf(ctx, rec.Workspace, config)
	if err != nil {
		return api.Build{}, err
	}
	run := s.builds.start(rec.Workspace, rec.ID, w, startOptions{fresh: true})
	return run.status(), nil
}

// BuildLog writes the log of the newest build from an offset (a number of
// lines) on; with follow it goes on until the build has ended or write fails.
func (s *Sandboxes) BuildLog(ctx context.Context, caller Caller, environment string, offset int64, follow bool, write func([]byte) error) error {
	rec, config, err := s.cloudEnvironment(ctx, caller, environment)
	if err != nil {
		return err
	}
	w, err := s.builds.wishOf(ctx, rec.Workspace, config)
	if err != nil {
		return err
	}
	for {
		run, news := s.builds.current(rec.ID, w)
		if run != nil {
			return run.copyLog(ctx, offset, follow, write)
		}
		build, err := s.builds.status(ctx, rec, w)
		if err != nil {
			return err
		}
		if build.Status != api.BuildQueued || !follow {
			return s.builds.storedLog(ctx, rec.ID, offset, write)
		}
		select { // it is about to begin
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyLog writes a run's log, with follow until it ends.
func (r *buildRun) copyLog(ctx context.Context, offset int64, follow bool, write func([]byte) error) error {
	for at := int(max(0, offset)); ; {
		lines, next, complete, changed := r.read(at)
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
		case <-r.done:
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
func (s *Sandboxes) cloudEnvironment(ctx context.Context, caller Caller, id string) (EnvironmentRecord, *api.CloudConfig, error) {
	rec, err := s.store.Environment(ctx, caller.Workspace, id)
	if errors.Is(err, ErrNoRecord) {
		return rec, nil, &Fault{Kind: NotFound, Message: "Environment " + printable(id) + " not found.", Cause: err}
	}
	if err != nil {
		return rec, nil, err
	}
	config, err := EnvironmentConfig(rec)
	if err != nil {
		return rec, nil, err
	}
	if config.Cloud == nil {
		return rec, nil, Faultf(Invalid, "Environment %s is self_hosted; this server builds nothing for it.", rec.ID)
	}
	return rec, config.Cloud, nil
}

// status answers from the run under way or from the record. A record of another
// wish is of before an update whose build has not begun.
func (b *Builds) status(ctx context.Context, env EnvironmentRecord, w wish) (api.Build, error) {
	if run, _ := b.current(env.ID, w); run != nil {
		return run.status(), nil
	}
	rec, err := b.recordOf(ctx, env.ID)
	if err != nil {
		return api.Build{}, err
	}
	out := api.Build{Type: "environment_build", EnvironmentID: env.ID, Status: api.BuildQueued, Template: w.Template, Layers: []api.BuildLayer{}}
	switch {
	case rec.Wanted == w.hash():
		if err := json.Unmarshal(rec.Document, &out); err != nil {
			return api.Build{}, fmt.Errorf("reading the build of %s: %w", env.ID, err)
		}
	case !env.ArchivedAt.IsZero():
		out.Status = api.BuildNone
	}
	return out, nil
}

// storedLog writes the recorded log of an environment's build.
func (b *Builds) storedLog(ctx context.Context, environment string, offset int64, write func([]byte) error) error {
	packed, err := b.store.BuildLog(ctx, environment)
	if errors.Is(err, ErrNoRecord) || err == nil && len(packed) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", environment, err)
	}
	unpacked, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", environment, err)
	}
	text, err := io.ReadAll(unpacked)
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", environment, err)
	}
	lines := slices.Collect(bytes.Lines(text))
	lines = lines[min(int64(len(lines)), max(0, offset)):]
	if len(lines) == 0 {
		return nil
	}
	return write(bytes.Join(lines, nil))
}
