package image

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSilentTools has each real tool fail without a word and name the entry by
// trying each alone.
func TestSilentTools(t *testing.T) {
	base := realBase(t)
	gemrc := gemSource(t, base)
	h := &boxHooks{before: func(_ context.Context, args []string, _ string) (*BoxExit, error) {
		line := strings.Join(args, " ")
		both := strings.Contains(line, "jq=99") || strings.Contains(line, "netbase") || strings.Contains(line, "atoll-no-such") ||
			strings.Contains(line, "@atoll-run/") || strings.Contains(line, "semver@99.1")
		first := strings.Contains(line, "figlet") || strings.Contains(line, "atoll-tiny") || strings.Contains(line, "left-pad") || strings.Contains(line, " six")
		if first && both && strings.Contains(line, "install") {
			return &BoxExit{Code: 3}, nil // the install of both; alone they are tried for real
		}
		return nil, nil
	}}
	open := openChroot(t, h)
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), MaxParallel: 2, NamingTime: 2 * time.Minute, OpenBox: func(ctx context.Context, spec BoxSpec) (Box, error) {
		spec.Layers = slices.Insert(slices.Clone(spec.Layers), 1, gemrc)
		return open(ctx, spec)
	}})
	must(t, err)
	t.Cleanup(b.Close)
	for _, tt := range []struct {
		name     string
		packages Packages
		kind     Kind
		index    int
		says     string
	}{
		{"apt", Packages{Apt: []string{"figlet", "jq=99"}}, KindVersionNotFound, 1, `apt: no such version or release of "jq=99": E: Version '99' for 'jq' was not found`},
		{"gem", Packages{Gem: []string{"atoll-tiny", "atoll-no-such-gem"}}, KindPackageNotFound, 1, `gem: no gem "atoll-no-such-gem": `},
		{"npm", Packages{Npm: []string{"left-pad", "@atoll-run/no-such-package"}}, KindPackageNotFound, 1, `npm: no package "@atoll-run/no-such-package": `},
		{"npm version", Packages{Npm: []string{"left-pad", "semver@99.1"}}, KindVersionNotFound, 1, `npm: no version matches "semver@99.1": `},
		{"pip", Packages{Pip: []string{"six", "atoll-no-such-distribution"}}, KindPackageNotFound, 1, `pip: no matching distribution for "atoll-no-such-distribution": `},
		{"nobody", Packages{Apt: []string{"figlet", "netbase"}}, KindInstallError, -1, "apt: installing failed for one of 2 packages"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run, err := b.Start(Request{Base: base, Packages: tt.packages})
			must(t, err)
			_, err = run.Wait(t.Context())
			var f *Failure
			if !errors.As(err, &f) || f.Kind != tt.kind || f.Index != tt.index || f.ExitCode != 3 || !strings.HasPrefix(f.Message, tt.says) {
				t.Errorf("got %+v (%v)\n%s", f, err, run.Log().Text())
			}
		})
	}
}
