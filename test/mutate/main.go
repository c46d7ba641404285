// Command mutate finds out what the tests do not see. It changes one thing of
// the code at a time, runs the tests of the package that it changed, and prints
// the changes after which they still pass: the survivors.
//
// There are two kinds of change. The named ones are written down in named.go:
// bounds and checks that no test once guarded, each with the test that guards it
// now; all of them are made in every run, and a survivor among them, or one that
// does not fit the code any more, is a failure. The sample is drawn from all the
// places where the code has a condition, a bound or a call; a survivor there is
// a hint to a person, since some changes change nothing that matters.
//
// The tree is never written: the changed file is laid over it by go test
// -overlay. The same seed over the same code draws the same sample.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// targets are the packages that the sample is drawn from.
func targets() []string {
	return []string{"internal/agent/toolset", "internal/control", "internal/egress", "internal/image"}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	n := flag.Int("n", 40, "how many changes the sample has; 0: the named ones only")
	seed := flag.Uint64("seed", 1, "what the sample is drawn with")
	only := flag.String("only", "", "make this named change alone, and no sample")
	flag.Parse()
	if err := run(ctx, os.Stdout, *n, *seed, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

// run makes the named changes and then the sample, in the repository whose root
// is the working directory.
func run(ctx context.Context, out io.Writer, n int, seed uint64, only string) error {
	scratch, err := os.MkdirTemp("", "atoll-mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	tests, err := newTester(scratch)
	if err != nil {
		return err
	}
	bad := runNamed(ctx, out, tests, only)
	if n > 0 && only == "" && ctx.Err() == nil {
		if err := runSample(ctx, out, tests, n, seed); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bad > 0:
		return fmt.Errorf("%d of the named changes were not found by their tests", bad)
	}
	return nil
}

// runNamed makes the named changes, each against its own test, and counts those
// that the test did not find.
func runNamed(ctx context.Context, out io.Writer, tests *tester, only string) (bad int) {
	ran := 0
	for _, m := range namedChanges() {
		if ctx.Err() != nil || only != "" && m.name != only {
			continue
		}
		ran++
		verdict, why := tests.named(ctx, m)
		fmt.Fprintf(out, "%-9s %s: %s (%s)\n", verdict, m.file, m.name, m.test)
		if verdict != killed {
			bad++
			fmt.Fprintf(out, "          %s\n", why)
		}
	}
	if only != "" && ran == 0 {
		fmt.Fprintf(out, "there is no named change %q\n", only)
		bad++
	}
	return bad
}

// runSample draws n changes and prints what became of each, and the survivors
// once more at the end.
func runSample(ctx context.Context, out io.Writer, tests *tester, n int, seed uint64) error {
	var all []change
	for _, dir := range targets() {
		found, err := changesOf(dir)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	rand.New(rand.NewPCG(seed, seed)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	fmt.Fprintf(out, "\n%d of %d changes, seed %d\n", min(n, len(all)), len(all), seed)
	counts := map[verdict]int{}
	var left []string
	for _, c := range all {
		if ctx.Err() != nil || counts[killed]+counts[survived]+counts[uncovered] == n {
			break
		}
		began := time.Now()
		v, err := tests.sampled(ctx, c)
		if err != nil {
			return err
		}
		counts[v]++
		if v == unfit { // not a program; another one is drawn instead
			continue
		}
		fmt.Fprintf(out, "%-9s %s (%.0fs)\n", v, c, time.Since(began).Seconds())
		if v != killed {
			left = append(left, fmt.Sprintf("%-9s %s", v, c))
		}
	}
	slices.Sort(left)
	fmt.Fprintf(out, "\n%d killed, %d survived, %d where no short test comes; %d drawn that do not compile\n", counts[killed], counts[survived], counts[uncovered], counts[unfit])
	for _, line := range left {
		fmt.Fprintln(out, line)
	}
	return nil
}

// rootFile is the absolute path of a file of the repository.
func rootFile(name string) (string, error) { return filepath.Abs(filepath.FromSlash(name)) }
