package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// verdict is what became of a change.
type verdict string

const (
	killed    verdict = "killed"    // a test failed
	survived  verdict = "SURVIVED"  // all tests passed
	uncovered verdict = "UNCOVERED" // no test comes to that line, so that none was run
	unfit     verdict = "UNFIT"     // the change cannot be made: it matches nothing, or gives no program
)

// tester runs the tests of packages, as they are and with changes.
type tester struct {
	scratch  string               // a directory of this run
	packages map[string]*baseline // package directory → its short tests without a change
	passed   map[string]string    // package directory → what its named tests printed without a change
}

// baseline is what a package's tests came to without a change.
type baseline struct {
	took  time.Duration
	lines map[string]map[int]bool // file → line of a statement → whether a test comes to it
}

func newTester(scratch string) (*tester, error) {
	if _, err := os.Stat("go.mod"); err != nil {
		return nil, errors.New("run this in the root of the repository")
	}
	return &tester{scratch: scratch, packages: map[string]*baseline{}, passed: map[string]string{}}, nil
}

// named makes a named change and runs its test, which must pass before the
// change and fail after it. why tells what else happened.
func (t *tester) named(ctx context.Context, m named) (v verdict, why string) {
	c, err := m.locate()
	if err != nil {
		return unfit, err.Error()
	}
	if why := t.passes(ctx, m); why != "" {
		return unfit, why
	}
	v, out, err := t.with(ctx, c, m.dir(), namedLimit, "-run", "^"+m.test+"$")
	switch {
	case err != nil:
		return unfit, err.Error()
	case v == unfit:
		return v, fmt.Sprintf("the change gives no program:\n%s", out)
	case v == survived:
		return v, c.String()
	}
	return v, ""
}

// namedLimit is how long a named test may take.
const namedLimit = 5 * time.Minute

// passes tells what is wrong with a named test without any change, or nothing.
// The named tests of a package are run together, once.
func (t *tester) passes(ctx context.Context, m named) string {
	dir := m.dir()
	if _, ok := t.passed[dir]; !ok {
		var tests []string
		for _, other := range namedChanges() {
			if other.dir() == dir && !slices.Contains(tests, other.test) {
				tests = append(tests, other.test)
			}
		}
		out, _ := t.goTest(ctx, dir, namedLimit, "-v", "-run", "^("+strings.Join(tests, "|")+")$") // the output tells which failed
		t.passed[dir] = string(out)
	}
	if out := t.passed[dir]; !strings.Contains(out, "--- PASS: "+m.test+" ") {
		return fmt.Sprintf("%s does not pass in %s without the change:\n%s", m.test, dir, out)
	}
	return ""
}

// sampled makes a change of the sample and runs the short tests of its package.
func (t *tester) sampled(ctx context.Context, c change) (verdict, error) {
	dir := path.Dir(c.file)
	before, err := t.baseline(ctx, dir)
	if err != nil {
		return unfit, err
	}
	if !before.reaches(c.file, c.line) {
		return uncovered, nil
	}
	v, _, err := t.with(ctx, c, dir, 2*before.took+time.Minute, append(quick(), "-failfast")...)
	return v, err
}

// quick are the flags that leave out what takes long: tests with real package
// managers, and those that kill the program at every step.
func quick() []string {
	return []string{"-short", "-skip", "Real|Kill|DownloadsAreReused|DeadRegistries|LearnSlim"}
}

// baseline runs a package's short tests without a change, once.
func (t *tester) baseline(ctx context.Context, dir string) (*baseline, error) {
	if b := t.packages[dir]; b != nil {
		return b, nil
	}
	profile := filepath.Join(t.scratch, "cover")
	began := time.Now()
	out, err := t.goTest(ctx, dir, 10*time.Minute, append(quick(), "-coverprofile", profile)...)
	if err != nil {
		return nil, fmt.Errorf("the tests of %s fail without a change:\n%s", dir, out)
	}
	b := &baseline{took: time.Since(began), lines: map[string]map[int]bool{}}
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	if err := b.readProfile(dir, string(text)); err != nil {
		return nil, err
	}
	t.packages[dir] = b
	return b, nil
}

// reaches tells whether a test comes to a line. A line that belongs to no
// statement, such as that of a constant, is taken for one.
func (b *baseline) reaches(file string, line int) bool {
	came, ok := b.lines[file][line]
	return came || !ok
}

// readProfile takes the lines that were run out of a profile of go test
// -coverprofile: "file:line.column,line.column statements count".
func (b *baseline) readProfile(dir, text string) error {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "mode:") {
			continue
		}
		at, numbers, _ := strings.Cut(strings.TrimSpace(line), " ")
		file, span, _ := strings.Cut(at, ":")
		var first, last, column, statements, count int
		if _, err := fmt.Sscanf(span+" "+numbers, "%d.%d,%d.%d %d %d", &first, &column, &last, &column, &statements, &count); err != nil {
			return fmt.Errorf("reading the profile, %q: %w", line, err)
		}
		file = path.Join(dir, path.Base(file))
		if b.lines[file] == nil {
			b.lines[file] = map[int]bool{}
		}
		for l := first; l <= last; l++ {
			b.lines[file][l] = b.lines[file][l] || count > 0
		}
	}
	return nil
}

// with runs tests with a change laid over the tree.
func (t *tester) with(ctx context.Context, c change, dir string, limit time.Duration, flags ...string) (verdict, []byte, error) {
	text, err := c.apply()
	if err != nil {
		return unfit, nil, err
	}
	at, err := rootFile(c.file)
	if err != nil {
		return unfit, nil, err
	}
	changed, overlay := filepath.Join(t.scratch, "changed.go"), filepath.Join(t.scratch, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {at: changed}})
	if err != nil {
		return unfit, nil, err
	}
	if err := errors.Join(os.WriteFile(changed, text, 0o644), os.WriteFile(overlay, replace, 0o644)); err != nil {
		return unfit, nil, err
	}
	out, err := t.goTest(ctx, dir, limit, append([]string{"-overlay", overlay}, flags...)...)
	switch {
	case ctx.Err() != nil:
		return unfit, out, ctx.Err()
	case err == nil:
		return survived, out, nil
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return unfit, out, nil
	}
	return killed, out, nil
}

// goTest runs the tests of a package. As root they run in namespaces of their
// own for mounts and processes, so that nothing is left of a test that was
// killed in the middle: no mount, no process and, held by neither, no network.
func (t *tester) goTest(ctx context.Context, dir string, limit time.Duration, flags ...string) ([]byte, error) {
	tmp, err := os.MkdirTemp(t.scratch, "tmp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	ctx, cancel := context.WithTimeout(ctx, limit+5*time.Minute) // the build, and a test that does not even end itself
	defer cancel()
	args := append([]string{"go", "test", "-count=1", "-vet=off", "-timeout", limit.String()}, flags...)
	args = append(args, "./"+dir)
	if os.Geteuid() == 0 {
		args = append([]string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TMPDIR="+tmp)
	cmd.WaitDelay = 10 * time.Second
	return cmd.CombinedOutput()
}
