package image

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// A part of a version is a requirement; what cargo takes itself stays as it is.
func TestCargoArgument(t *testing.T) {
	for text, want := range map[string]string{
		"ripgrep": "ripgrep", "ripgrep@14": "ripgrep@^14", "a@1.2": "a@^1.2", "a@1.2, <2": "a@^1.2, <2", "a@1.2.3, <2": "a@^1.2.3, <2",
		"a@1.2.3": "a@1.2.3", "a@1.2.3-rc.1+b": "a@1.2.3-rc.1+b", "a@=1.2": "a@=1.2", "a@^1": "a@^1", "a@~1.2": "a@~1.2", "a@>=1.2, <2": "a@>=1.2, <2",
		"a@*": "a@*", "a@1.*": "a@1.*", "a@ 14": "a@^14",
	} {
		s, why := parseCargo(text)
		if why != "" {
			t.Errorf("%s: %s", text, why)
		}
		s.text = text
		if got := cargoArgument(s); got != want {
			t.Errorf("%s becomes %s, want %s", text, got, want)
		}
	}
}

// cargoBox answers cargo install in the place of cargo.
type cargoBox struct {
	Box
	calls *[][]string
	fail  func(args []string) string // what cargo says; empty: it succeeds
}

func (b cargoBox) Run(ctx context.Context, c BoxCommand) (BoxExit, error) {
	if len(c.Args) < 2 || c.Args[0] != "cargo" || c.Args[1] != "install" {
		return b.Box.Run(ctx, c)
	}
	if slices.Contains(c.Args, "--list") {
		if len(*b.calls) > 0 {
			_, _ = c.Stdout.Write([]byte("prog v14.1.0:\n    prog\n"))
		}
		return BoxExit{}, nil
	}
	*b.calls = append(*b.calls, c.Args)
	if said := b.fail(c.Args); said != "" {
		_, _ = c.Output.Write([]byte(said + "\n"))
		return BoxExit{Code: 101}, nil
	}
	return BoxExit{}, nil
}

// A program is built with its own lock file. Without it only if that does not
// build with the compiler; other failures are told at once.
func TestCargoFollowsTheLockFile(t *testing.T) {
	locked := func(args []string) bool { return slices.Contains(args, "--locked") }
	for name, tt := range map[string]struct {
		fail  func(args []string) string
		calls int
		kind  Kind
	}{
		"it builds": {func([]string) string { return "" }, 1, ""},
		"the lock file is too old": {func(a []string) string {
			if locked(a) {
				return "error[E0282]: type annotations needed\nerror: could not compile `time` (lib) due to 1 previous error"
			}
			return ""
		}, 2, ""},
		"no such crate": {func([]string) string { return "error: could not find `prog` in registry `crates-io` with version `*`" }, 1, KindPackageNotFound},
		"rustc is too old": {func([]string) string {
			return "error: cannot install package `prog 15.0.0`, it requires rustc 1.88 or newer, while the currently active rustc version is 1.85.1"
		}, 2, KindToolchainMissing},
	} {
		t.Run(name, func(t *testing.T) {
			var calls [][]string
			f := &fakeBoxes{dir: t.TempDir()}
			b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: func(ctx context.Context, spec BoxSpec) (Box, error) {
				box, err := f.Open(ctx, spec)
				if err == nil {
					write(t, box.(*fakeBox).upper+"/usr/local/bin/prog", "x", 0o755)
				}
				return cargoBox{box, &calls, tt.fail}, err
			}})
			must(t, err)
			defer b.Close()
			base := &Base{Digest: "base", Dir: "/", Arch: "amd64", Managers: map[string]string{"cargo": "1"}}
			res, err := b.Build(t.Context(), Request{Base: base, Packages: Packages{Cargo: []string{"prog@14"}}})
			failed := asFailure(err)
			if err == nil {
				res.Release()
				failed = &Failure{}
			}
			if len(calls) != tt.calls || failed.Kind != tt.kind {
				t.Fatalf("%d calls, %v", len(calls), err)
			}
			for i, args := range calls {
				if locked(args) != (i == 0) || args[len(args)-1] != "prog@^14" {
					t.Errorf("call %d is %s", i, strings.Join(args, " "))
				}
			}
			if tt.kind == KindToolchainMissing && !strings.Contains(failed.Message, "requires rustc 1.88") {
				t.Errorf("told as %s", failed.Message)
			}
		})
	}
}
