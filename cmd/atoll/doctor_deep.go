package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/atoll-run/atoll/internal/image"
)

// deepCheck holds every package layer against the digest of what was installed.
// It may run beside a server.
func deepCheck(cfg Config) Check {
	return Check{Name: "package layers", Required: true, Slow: true,
		Run:    func(ctx context.Context) (string, error) { return checkLayers(ctx, filepath.Join(cfg.Data, layersDir)) },
		Remedy: "something else than Atoll wrote there, or the disk loses data: stop the server, remove the directories of these layers and of those above them, and start it; what is missing is installed again"}
}

func checkLayers(ctx context.Context, dir string) (string, error) {
	found, err := image.VerifyLayers(ctx, dir)
	if err != nil {
		return "", err
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(found.Damaged)) {
		errs = append(errs, fmt.Errorf("%s: %w", filepath.Join(dir, key), found.Damaged[key]))
	}
	if len(errs) > 0 {
		return "", errors.Join(errs...)
	}
	if found.Layers == 0 {
		return "", fmt.Errorf("no package layers: %w", errSkip)
	}
	return fmt.Sprintf("%d layers, %d MB: as they were committed", found.Layers, found.Bytes/1_000_000), nil
}
