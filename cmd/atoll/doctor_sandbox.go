package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atoll-run/atoll/internal/egress"
	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

// checkEgress makes the network of a session, tries it from the inside, and
// takes it away again.
func checkEgress(ctx context.Context, cfg Config) (found string, err error) {
	config, err := cfg.Egress.gatewayConfig()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(nearest(cfg.Data), ".atoll-doctor-")
	if err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	config.Dir = filepath.Join(dir, "net")
	gateway, err := egress.New(config)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, gateway.Shutdown(ctx)) }()
	if err := gateway.Check(ctx); err != nil {
		return "", err
	}
	found = "a session's network can be made, and redirects what a sandbox sends"
	for _, x := range cfg.Egress.Exempt {
		found += fmt.Sprintf("; exempt: %s at %s", x.Host, x.CIDR)
	}
	return found, nil
}

// checkSandbox starts a sandbox of a built template and runs a command in it.
func checkSandbox(ctx context.Context, cfg Config) (found string, err error) {
	templates, err := cfg.templates(nil, nil)
	if err != nil {
		return "", err
	}
	var layer string
	for _, name := range append([]string{"slim", templates.Default()}, templates.Names()...) {
		if base, ok := templates.Lookup(name); ok {
			layer = base.Dir
			break
		}
	}
	if layer == "" {
		return "", fmt.Errorf("no template is built yet (atoll template build slim): %w", errSkip)
	}
	dir, err := os.MkdirTemp(nearest(cfg.Data), ".atoll-doctor-")
	if err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	engine, err := gvisor.New(gvisor.Config{Dir: dir})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, engine.Destroy(context.WithoutCancel(ctx), "doctor"), engine.Close()) }()
	start := time.Now()
	spec := sandbox.Spec{ID: "doctor", Layers: []string{layer}, Dir: "/", Limits: sandbox.Limits{DiskBytes: 64 << 20}}
	if err := engine.Create(ctx, spec); err != nil {
		return "", err
	}
	var out bytes.Buffer
	process, err := engine.Exec(ctx, "doctor", sandbox.Command{Args: []string{"/bin/sh", "-c", "echo works"}, Stdout: &out, Stderr: &out})
	if err != nil {
		return "", err
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		return "", err
	}
	if exit.Code != 0 || strings.TrimSpace(out.String()) != "works" {
		return "", fmt.Errorf("a command in a sandbox ended with %d: %s", exit.Code, lastLine(out.String()))
	}
	return fmt.Sprintf("a sandbox started and ran a command in %s", time.Since(start).Round(time.Millisecond)), nil
}
