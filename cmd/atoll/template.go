package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/image"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

type templateCmd struct {
	List  templateListCmd  `cmd:"" help:"List the templates and whether they are built."`
	Show  templateShowCmd  `cmd:"" help:"Show a template: its registries, versions and authorities."`
	Build templateBuildCmd `cmd:"" help:"Build a template if there is no current version of it."`
}

type templateListCmd struct{ hostFlags }

type templateShowCmd struct {
	hostFlags
	JSON bool   `name:"json" help:"Print all that is known, as JSON."`
	Name string `arg:"" help:"Name of the template."`
}

type templateBuildCmd struct {
	hostFlags
	Rebuild bool   `help:"Build a new version even if there is one, to take up what was published since."`
	Name    string `arg:"" help:"Name of the template."`
}

// Run prints a table of the templates.
func (c templateListCmd) Run(io *streams) error {
	templates, _, err := c.open(io, nil)
	if err != nil {
		return err
	}
	all, err := templates.List()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(io.out, 0, 0, 2, ' ', 0)
	sayText(table, "NAME\tBUILT\tSIZE\tDESCRIPTION\n")
	for _, m := range all {
		built, size := "-", "-"
		if m.Built {
			built, size = m.CreatedAt.Format(time.RFC3339), sizeText(m.SizeBytes)
		}
		say(table, "%s\t%s\t%s\t%s\n", m.Template, built, size, m.Description)
	}
	return table.Flush()
}

// open makes the configured templates. log may be nil.
func (f hostFlags) open(io *streams, open image.OpenBox) (*image.Templates, Config, error) {
	cfg, err := f.load(io, defaultListen)
	if err != nil {
		return nil, Config{}, err
	}
	templates, err := cfg.templates(nil, open)
	return templates, cfg, err
}

// Run prints what is known of a template.
func (c templateShowCmd) Run(io *streams) error {
	templates, _, err := c.open(io, nil)
	if err != nil {
		return err
	}
	m, err := templates.Show(c.Name)
	if err != nil {
		return err
	}
	if c.JSON {
		return sayJSON(io.out, m, "  ")
	}
	printTemplate(io.out, m)
	return nil
}

func printTemplate(out io.Writer, m image.Manifest) {
	line := func(name, value string) {
		if value != "" {
			say(out, "%-12s %s\n", name, value)
		}
	}
	line("name", m.Template)
	line("description", m.Description)
	if !m.Built {
		line("built", "no; atoll template build "+m.Template)
		return
	}
	line("built", m.CreatedAt.Format(time.RFC3339))
	line("digest", m.Digest)
	line("size", sizeText(m.SizeBytes))
	line("source", m.Source)
	for _, reg := range m.Registries {
		host := reg.Host
		if reg.Port != 0 {
			host = fmt.Sprintf("%s:%d", host, reg.Port)
		}
		line("registry", fmt.Sprintf("%-5s %s (%s)", reg.Manager, host, reg.How))
	}
	for _, versions := range []struct {
		name string
		of   map[string]string
	}{{"manager", m.Managers}, {"runtime", m.Runtimes}} {
		for _, key := range slices.Sorted(maps.Keys(versions.of)) {
			line(versions.name, key+" "+versions.of[key])
		}
	}
	for _, a := range m.Authorities {
		line("authority", a.Subject)
	}
	for _, w := range m.Warnings {
		line("warning", w)
	}
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
}

// Run builds a template with its progress on standard error.
func (c templateBuildCmd) Run(ctx context.Context, io *streams) error {
	cfg, err := c.load(io, defaultListen)
	if err != nil {
		return err
	}
	if err := preflight(ctx, cfg); err != nil {
		return err
	}
	start := time.Now()
	var base *image.Base
	err = withBoxes(ctx, cfg, func(open image.OpenBox) error {
		templates, err := cfg.templates(nil, open)
		if err != nil {
			return err
		}
		progress := image.NewTerminalProgress(io.err, isTerminal(io.err))
		defer progress.Close()
		build := templates.Ensure
		if c.Rebuild {
			build = templates.Rebuild
		}
		base, err = build(ctx, c.Name, progress)
		return err
	})
	if err != nil {
		return err
	}
	say(io.out, "%s %s %s (%s)\n", base.Template, strings.TrimPrefix(base.Digest, "sha256:")[:12], sizeText(base.SizeBytes), time.Since(start).Round(100*time.Millisecond))
	return nil
}

// withBoxes calls do with an engine and a gateway of its own, in which a
// template's package managers are asked where they download from, and takes
// both away afterwards. A server may run beside it.
func withBoxes(ctx context.Context, cfg Config, do func(image.OpenBox) error) (err error) {
	if err := os.MkdirAll(cfg.Cache, 0o711); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	dir, err := os.MkdirTemp(nearest(cfg.Data), ".atoll-template-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	engine, err := gvisor.New(gvisor.Config{Dir: filepath.Join(dir, "sandboxes")})
	if err != nil {
		return fmt.Errorf("opening the sandbox engine: %w", err)
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	config, err := cfg.Egress.gatewayConfig()
	if err != nil {
		return err
	}
	config.Dir = filepath.Join(dir, "networks")
	network, err := egress.New(config)
	if err != nil {
		return fmt.Errorf("opening the network gateway: %w", err)
	}
	defer func() { err = errors.Join(err, network.Shutdown(context.WithoutCancel(ctx))) }()
	boxes := &control.Boxes{Engine: engine, Network: network, Limits: builderLimits(cfg.Packages.limits().limits(), cfg.Limits.limits())}
	return do(boxes.Open)
}
