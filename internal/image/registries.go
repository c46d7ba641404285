package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	askTimeout   = 30 * time.Second
	learnTimeout = 10 * time.Minute
)

// toolOf says how a package manager tells about itself. Probes download one tiny thing and run no package code; the
// hosts that they meet are the manager's registries too, since indexes point at download hosts.
type toolOf struct {
	version []string
	ask     func(ctx context.Context, l *learner) ([]Registry, error)
	probe   string // a shell script in an empty directory
	timeout time.Duration
}

func tools() map[string]toolOf {
	return map[string]toolOf{
		"apt": {
			version: []string{"apt-get", "--version"},
			ask:     askApt,
			probe:   `apt-get -q update && apt-get -q download hostname`,
			timeout: time.Minute,
		},
		"cargo": {
			version: []string{"cargo", "--version"},
			ask:     askCargo,
			// A home of its own for what is downloaded, with the settings of the template's.
			probe: `mkdir src home && for f in config config.toml; do cp "${CARGO_HOME:-$HOME/.cargo}/$f" home/ 2>/dev/null; done; : > src/lib.rs && printf '[package]\nname="probe"\nversion="0.0.0"\nedition="2021"\n[dependencies]\ncfg-if="1"\n' > Cargo.toml &&` +
				` CARGO_HOME=$PWD/home cargo fetch`,
			timeout: time.Minute,
		},
		"gem": {
			version: []string{"gem", "--version"},
			ask:     askOne(parseGemSources, "gem", "sources", "--list"),
			probe:   `gem fetch hola`,
			timeout: 20 * time.Second,
		},
		"go": {
			version: []string{"go", "version"},
			ask: func(ctx context.Context, l *learner) ([]Registry, error) {
				return askParsed(ctx, l, parseGoEnv, "go", "env", "-json", "GOPROXY", "GOSUMDB")
			},
			probe:   `GOFLAGS=-modcacherw GOMODCACHE=$PWD/mod go mod download rsc.io/sampler@v1.3.1`,
			timeout: time.Minute,
		},
		"npm": {
			version: []string{"npm", "--version"},
			ask: func(ctx context.Context, l *learner) ([]Registry, error) {
				return askParsed(ctx, l, parseNpmConfig, "npm", "config", "list", "--json")
			},
			probe:   `npm pack --ignore-scripts --cache "$PWD/cache" is-number`,
			timeout: time.Minute,
		},
		"pip": {
			version: []string{"python3", "-m", "pip", "--version"},
			ask:     askPip,
			probe:   `python3 -m pip download --no-deps --only-binary :all: --no-cache-dir six`,
			timeout: time.Minute,
		},
	}
}

func askOne(parse func(string) []Registry, args ...string) func(context.Context, *learner) ([]Registry, error) {
	return func(ctx context.Context, l *learner) ([]Registry, error) {
		out, err := l.output(ctx, args...)
		return parse(out), err
	}
}

func askParsed(ctx context.Context, l *learner, parse func(string) ([]Registry, error), args ...string) ([]Registry, error) {
	out, err := l.output(ctx, args...)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

func askApt(ctx context.Context, l *learner) ([]Registry, error) {
	// indextargets tells only of lists that are there, and a template has none; this fetches nothing.
	sites, err := l.output(ctx, "apt-get", "--print-uris", "update")
	if err != nil {
		return nil, err
	}
	conf, err := l.output(ctx, "apt-config", "dump")
	return append(parseAptSites(sites), parseAptProxies(conf)...), err
}

func askCargo(ctx context.Context, l *learner) ([]Registry, error) {
	out, err := l.output(ctx, "/bin/sh", "-c", `env | sed -n 's/^CARGO_REGISTRIES_.*_INDEX=\(.*\)$/index = "\1"/p'; `+
		`cat "${CARGO_HOME:-$HOME/.cargo}/config.toml" "${CARGO_HOME:-$HOME/.cargo}/config" /.cargo/config.toml /.cargo/config 2>/dev/null; true`)
	return parseCargoConfig(out), err
}

func askPip(ctx context.Context, l *learner) ([]Registry, error) {
	out, err := l.output(ctx, "python3", "-m", "pip", "config", "list")
	if err != nil {
		return nil, err
	}
	regs, index := parsePipConfig(out)
	if index {
		return regs, nil
	}
	// pip cannot be asked for its default, so its code is; one that moved it is left to the probe.
	out, err = l.output(ctx, "python3", "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)")
	return append(regs, urlRegistries("pip", strings.Fields(out)...)...), err
}

// learner asks and probes in one box, one thing after the other, so that what the network saw can be told apart.
type learner struct {
	box Box
	p   Progress
	out learned
}

// learn finds out which managers a version has, which registries they use, and the versions of what the template
// promises, and stores it. What cannot be found out is a warning; a box that cannot be had is an error.
func (t *Templates) learn(ctx context.Context, m *Manifest, p Progress) (_ *Manifest, err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	p.Stage("asking the package managers for their registries")
	box, err := t.openBox(ctx, BoxSpec{Purpose: "learn registries of " + m.Template,
		Layers: []string{filepath.Join(t.basesDir(), m.Digest, "rootfs")}, Env: m.Env, Observe: true, Timeout: learnTimeout})
	if err != nil {
		return nil, fmt.Errorf("learning registries: %w", err)
	}
	defer func() { err = errors.Join(err, box.Close(context.WithoutCancel(ctx))) }()
	l := &learner{box: box, p: p, out: learned{Format: learnedFormat, Managers: map[string]string{}, Runtimes: map[string]string{}, Registries: []Registry{}}}
	if err := l.all(ctx, m.Declaration.Runtimes); err != nil {
		return nil, fmt.Errorf("learning registries: %w", err)
	}
	t.log.Info("learned registries", "template", m.Template, "registries", len(l.out.Registries), "warnings", len(l.out.Warnings), "duration", time.Since(start))
	return t.storeLearned(m, l.out)
}

func (l *learner) all(ctx context.Context, runtimes map[string][]string) error {
	steps, done := len(managerOrder)*2+len(runtimes), 0
	step := func() { done++; l.p.Percent(100 * float64(done) / float64(steps)) }
	all := tools()
	for _, name := range managerOrder {
		tool := all[name]
		version, err := l.output(ctx, tool.version...)
		if err != nil {
			// Not there, or not able to say so much as its version: then nothing can be installed with it.
			if err := l.warn(ctx, name, err); err != nil {
				return err
			}
			step()
			step()
			continue
		}
		l.out.Managers[name] = firstVersion(version)
		regs, err := tool.ask(ctx, l)
		if err := l.warn(ctx, name, err); err != nil {
			return err
		}
		l.out.Registries = append(l.out.Registries, regs...)
		step()
		l.p.Log("probing " + name)
		if err := l.probe(ctx, name, tool); err != nil {
			return err
		}
		step()
	}
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		out, err := l.output(ctx, runtimes[name]...)
		if err := l.warn(ctx, "runtime "+name, err); err != nil {
			return err
		}
		if v := firstVersion(out); err == nil && v != "" {
			l.out.Runtimes[name] = v
		} else {
			l.out.Warnings = append(l.out.Warnings, "runtime "+name+" does not tell its version")
		}
		step()
	}
	l.out.Registries = tidyRegistries(l.out.Registries)
	return nil
}

// probe runs the manager's probe and records the hosts that it met.
func (l *learner) probe(ctx context.Context, name string, tool toolOf) error {
	before := map[Contact]int{}
	for _, c := range l.box.Reached() {
		before[Contact{Host: c.Host, Port: c.Port, Allowed: c.Allowed}] += c.Count
	}
	script := `dir=$(mktemp -d) && chmod 0755 "$dir" && cd "$dir" || exit; ` + tool.probe + `; code=$?; cd /; rm -rf "$dir"; exit $code`
	_, perr := l.run(ctx, tool.timeout, "/bin/sh", "-c", script)
	after := map[Contact]int{}
	for _, c := range l.box.Reached() {
		after[Contact{Host: c.Host, Port: c.Port, Allowed: c.Allowed}] += c.Count
	}
	reached := map[string]bool{}
	for c, n := range after {
		if c.Allowed && n > before[c] {
			reached[c.Host] = true
		}
	}
	for c, n := range after {
		if n <= before[c] || !c.Allowed && reached[c.Host] {
			continue
		}
		r, ok := hostRegistry(name, fmt.Sprintf("%s:%d", bracket(c.Host), c.Port), "observed")
		if !ok {
			continue
		}
		if !c.Allowed {
			l.out.Warnings = append(l.out.Warnings, fmt.Sprintf(
				"%s: the network refused %s port %d: if the registry's address is internal, allow it under egress.exempt in the configuration", name, c.Host, c.Port))
			continue
		}
		l.out.Registries = append(l.out.Registries, r)
	}
	return l.warn(ctx, name+" probe", perr)
}

func bracket(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// warn records a step that failed. It fails itself only when going on makes no sense.
func (l *learner) warn(ctx context.Context, what string, err error) error {
	if err == nil || errors.Is(err, errMissing) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var lost *boxError
	if errors.As(err, &lost) {
		return err
	}
	l.out.Warnings = append(l.out.Warnings, printableLine(what+": "+err.Error(), 600))
	l.p.Log("warning: " + what + ": " + err.Error())
	return nil
}

var errMissing = errors.New("not in the template")

// boxError is a box that did not do its part, other than a command that failed.
type boxError struct{ err error }

func (e *boxError) Error() string { return e.err.Error() }
func (e *boxError) Unwrap() error { return e.err }

func (l *learner) output(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, askTimeout, args...)
}

// run returns a command's standard output, or both streams when that is empty, as some tools print their version to
// the other one.
func (l *learner) run(ctx context.Context, limit time.Duration, args ...string) (string, error) {
	sub, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var stdout, stderr boundedBuffer
	exit, err := l.box.Run(sub, BoxCommand{
		// A shell finds the program by the sandbox's PATH and says 127 when there is none, whatever the engine would.
		Args: append([]string{"/bin/sh", "-c", `exec "$@"`, "sh"}, args...), Dir: "/", Stdout: &stdout, Output: &stderr,
	})
	signal := ""
	if exit.Signal != "" {
		signal = ", " + exit.Signal
	}
	said := telling(stderr.String() + "\n" + stdout.String())
	switch {
	case sub.Err() != nil && ctx.Err() == nil:
		return "", fmt.Errorf("no answer within %s: %s", limit, said)
	case err != nil:
		return "", &boxError{err}
	case exit.Code == 127, exit.Code == 1 && strings.Contains(stderr.String(), "No module named"):
		return "", errMissing
	case exit.Code != 0 || exit.Signal != "":
		return "", fmt.Errorf("%s failed (exit code %d%s): %s", args[0], exit.Code, signal, telling(stderr.String()))
	case strings.TrimSpace(stdout.String()) == "":
		return stderr.String(), nil
	}
	return stdout.String(), nil
}

// boundedBuffer keeps the first 256 KiB.
type boundedBuffer struct{ b bytes.Buffer }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.b.Write(p[:min(len(p), max(0, 256<<10-b.b.Len()))])
	return len(p), nil
}

func (b *boundedBuffer) String() string { return b.b.String() }

// telling picks the line of a tool's output that tells most: the last one that speaks of an error, else the last.
func telling(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.Contains(strings.ToLower(line), "error") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

var versionPattern = regexp.MustCompile(`\d+(\.\d+)+[a-z0-9]*`)

// firstVersion finds the version in what a tool prints about itself.
func firstVersion(out string) string { return versionPattern.FindString(out) }
