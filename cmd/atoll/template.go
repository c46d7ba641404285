package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/atoll-run/atoll/internal/image"
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
	fmt.Fprintln(table, "NAME\tBUILT\tSIZE\tDESCRIPTION")
	for _, m := range all {
		built, size := "-", "-"
		if m.Built {
			built, size = m.CreatedAt.Format(time.RFC3339), sizeText(m.SizeBytes)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", m.Template, built, size, m.Description)
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
		enc := json.NewEncoder(io.out)
		enc.SetIndent("", "  ")
		return enc.Encode(m)
	}
	printTemplate(io.out, m)
	return nil
}

func printTemplate(out io.Writer, m image.Manifest) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%-12s %s\n", name, value)
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
	templates, err := cfg.templates(nil, nil)
	if err != nil {
		return err
	}
	progress := image.NewTerminalProgress(io.err, isTerminal(io.err))
	build := templates.Ensure
	if c.Rebuild {
		build = templates.Rebuild
	}
	start := time.Now()
	base, err := build(ctx, c.Name, progress)
	progress.Close()
	if err != nil {
		return err
	}
	fmt.Fprintf(io.out, "%s %s %s (%s)\n", base.Template, strings.TrimPrefix(base.Digest, "sha256:")[:12], sizeText(base.SizeBytes), time.Since(start).Round(100*time.Millisecond))
	return nil
}
