package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The hooks run in the bootstrap's own mount namespace, so that the bind mount of the download cache is gone with it
// whatever kills it. Paths come through the environment: nothing is pasted into a shell.
const (
	hookSetup = `mkdir -p "$1/var/cache/apt/archives" "$1/etc/apt/preferences.d" && mount --bind "$ATOLL_DEBS" "$1/var/cache/apt/archives"` +
		` && { [ -z "$ATOLL_PREFERENCES" ] || printf %s "$ATOLL_PREFERENCES" > "$1/etc/apt/preferences.d/atoll-suites"; }`
	// Authorities are there before ca-certificates is configured, so its own triggers take them up. Manual directories
	// are there because alternatives fail without them once dpkg leaves the pages out.
	hookEssential = `mkdir -p "$1/usr/local/share/ca-certificates" && cp -R "$ATOLL_CAS/." "$1/usr/local/share/ca-certificates/"` +
		` && for n in 1 2 3 4 5 6 7 8; do mkdir -p "$1/usr/share/man/man$n"; done`
	hookCustomize = `umount "$1/var/cache/apt/archives"`
)

// bootstrapper makes Debian root file systems.
type bootstrapper struct {
	cache string   // holds debs/: every archive ever downloaded
	etc   string   // the host's /etc
	lock  *os.File // kept open by the tools, so that it is held until the last of them is gone
}

// plan returns the apt source lines and apt options for d, from the host's configuration where d is silent.
func (b bootstrapper) plan(d *Debian) (lines []string, err error) {
	var host []aptSource
	if d.Mirror == "" {
		if host, err = hostAptSources(filepath.Join(b.etc, "apt")); err != nil {
			return nil, err
		}
	}
	return debianLines(d, host, osRelease(b.etc)["VERSION_CODENAME"])
}

// osRelease reads etc/os-release; what cannot be read is empty.
func osRelease(etc string) map[string]string {
	out := map[string]string{}
	b, _ := os.ReadFile(filepath.Join(etc, "os-release"))
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = strings.Trim(v, `"'`)
		}
	}
	return out
}

var aptConfigLine = regexp.MustCompile(`^(Acquire::(?:Check-Valid-Until|Check-Date|https?::Proxy(?:::[A-Za-z0-9.-]+)?)) "([^"\\]*)";$`)

// hostAptOptions are the settings of the host's apt without which its mirrors may not be reachable or acceptable:
// proxies, and the checks of dates. One with credentials is left out of keep, which goes into the image, and is in env.
func hostAptOptions(dump []byte) (keep, env []string) {
	for line := range strings.Lines(string(dump)) {
		m := aptConfigLine.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil || m[2] == "":
		case strings.Contains(m[2], "@"):
			env = append(env, strings.ToLower(strings.Split(m[1], "::")[1])+"_proxy="+m[2])
		default:
			keep = append(keep, m[1]+` "`+m[2]+`"`)
		}
	}
	return keep, env
}

// bootstrap fills rootfs, which must not exist, with d. Downloads are kept in the cache, so that a second attempt
// repeats none.
func (b bootstrapper) bootstrap(ctx context.Context, d *Debian, cas []Authority, rootfs, scratch string, p Progress) error {
	lines, err := b.plan(d)
	if err != nil {
		return err
	}
	debs, casDir := filepath.Join(b.cache, "debs"), filepath.Join(scratch, "cas")
	for _, dir := range []string{filepath.Join(debs, "partial"), casDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("preparing the bootstrap: %w", err)
		}
	}
	if err := writeAuthorities(casDir, cas); err != nil {
		return err
	}
	keep, proxies := []string(nil), []string(nil)
	if out, err := exec.CommandContext(ctx, "apt-config", "dump").Output(); err == nil {
		keep, proxies = hostAptOptions(out)
	}
	cmd := exec.CommandContext(ctx, "unshare", append([]string{
		"--fork", "--pid", "--mount", "--mount-proc", "--propagation=private", "--kill-child=SIGKILL",
		"mmdebstrap"}, mmdebstrapArgs(d, lines, keep, rootfs)...)...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root",
		"TMPDIR=" + scratch, "ATOLL_DEBS=" + debs, "ATOLL_CAS=" + casDir,
		"ATOLL_PREFERENCES=" + suitePreferences(d.Suites), "DEBIAN_FRONTEND=noninteractive"}, proxies...)
	for _, k := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v := os.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	passLock(cmd, b.lock)
	w := &bootstrapOutput{p: p, packages: len(d.Packages)}
	if err := runTied(cmd, w); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("bootstrapping %s: %w: install the packages mmdebstrap, util-linux and debian-archive-keyring", d.Suite, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("bootstrapping %s: %w", d.Suite, context.Cause(ctx))
		}
		return fmt.Errorf("bootstrapping %s: %w:\n%s", d.Suite, err, w.tail())
	}
	if err := finishDebian(rootfs); err != nil {
		return err
	}
	if err := b.compileGo(ctx, rootfs, p); err != nil {
		return err
	}
	return copyKeyrings(lines, rootfs)
}

// copyKeyrings gives the root the keyrings that its sources name and its packages did not bring.
func copyKeyrings(lines []string, rootfs string) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("copying keyrings: %w", err)
	}
	defer root.Close()
	for _, line := range lines {
		_, rest, ok := strings.Cut(line, "signed-by=")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, "]")
		inside := strings.TrimPrefix(name, "/")
		if _, err := root.Stat(inside); err == nil {
			continue
		}
		key, err := os.ReadFile(name)
		if err == nil {
			err = root.MkdirAll(filepath.Dir(inside), 0o755)
		}
		if err == nil {
			err = root.WriteFile(inside, key, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copying keyring %s: %w", name, err)
		}
	}
	return nil
}

func mmdebstrapArgs(d *Debian, lines, keep []string, rootfs string) []string {
	variant := d.Variant
	if variant == "" {
		variant = "minbase"
	}
	args := []string{"--mode=root", "--format=directory", "--verbose", "--variant=" + variant,
		"--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-include=/usr/share/locale/locale.alias",
		`--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "3"`,
		"--skip=download/empty", "--skip=essential/unlink",
		"--setup-hook=" + hookSetup, "--essential-hook=" + hookEssential, "--customize-hook=" + hookCustomize}
	for _, o := range keep {
		args = append(args, "--aptopt="+o)
	}
	if len(d.Packages) > 0 {
		args = append(args, "--include="+strings.Join(d.Packages, ","))
	}
	if len(d.Components) > 0 {
		args = append(args, "--components="+strings.Join(d.Components, ","))
	}
	return append(append(args, d.Suite, rootfs), lines...)
}

// lockDescriptor is the number under which the bootstrap's processes hold the
// template's lock.
const lockDescriptor = 63

// passLock lets a command and all it starts hold the template's lock, under a
// high number, and keeps every other descriptor of this process from it:
// mmdebstrap writes the numbers of its own into shell redirections, and the
// shell takes one digit only.
func passLock(cmd *exec.Cmd, lock *os.File) {
	cmd.ExtraFiles = make([]*os.File, lockDescriptor-2) // the first is number 3; a nil one is closed
	cmd.ExtraFiles[lockDescriptor-3] = lock
}

// runTied runs cmd so that it dies with this process: the thread that starts it lives until it has ended, as
// Pdeathsig is about threads.
func runTied(cmd *exec.Cmd, out io.Writer) error {
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	return <-done
}

// finishDebian removes what the bootstrap left of this host and adds what the distribution lacks.
func finishDebian(rootfs string) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("finishing the root: %w", err)
	}
	defer root.Close()
	for _, name := range []string{"etc/resolv.conf", "etc/hostname", "etc/machine-id", "var/log/apt", "var/log/dpkg.log",
		"var/log/alternatives.log", "var/log/bootstrap.log", "var/cache/debconf/templates.dat-old", "var/lib/dpkg/status-old"} {
		if err := root.RemoveAll(name); err != nil {
			return fmt.Errorf("finishing the root: %w", err)
		}
	}
	if _, err := root.Lstat("usr/bin/python3"); err == nil {
		if err := root.Symlink("/usr/bin/python3", "usr/local/bin/python"); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("finishing the root: %w", err)
		}
	}
	// Also without npm, which an environment's apt packages may bring.
	if err := linkModules(root); err != nil {
		return fmt.Errorf("finishing the root: %w", err)
	}
	return nil
}

// debianPackages lists what dpkg says is installed in the root as name=version:arch, sorted. It fails unless every
// package is fully installed.
func debianPackages(root *os.Root) ([]string, error) {
	f, err := root.Open("var/lib/dpkg/status")
	if err != nil {
		return nil, fmt.Errorf("reading the package database: %w", err)
	}
	defer f.Close()
	var out, broken []string
	fields := map[string]string{}
	flush := func() {
		if name := fields["Package"]; name != "" {
			switch fields["Status"] {
			case "install ok installed":
				out = append(out, name+"="+fields["Version"]+":"+fields["Architecture"])
			case "deinstall ok config-files", "purge ok not-installed", "unknown ok not-installed":
			default:
				broken = append(broken, name+" ("+fields["Status"]+")")
			}
		}
		clear(fields)
	}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		k, v, ok := strings.Cut(sc.Text(), ": ")
		switch {
		case sc.Text() == "":
			flush()
		case ok && (k == "Package" || k == "Status" || k == "Version" || k == "Architecture"):
			fields[k] = v
		}
	}
	flush()
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("reading the package database: %w", err)
	}
	if len(broken) > 0 {
		return nil, fmt.Errorf("packages are not fully installed: %s", strings.Join(broken, ", "))
	}
	slices.Sort(out)
	return out, nil
}

// bootstrapOutput turns mmdebstrap's output into progress and keeps its end for the error.
type bootstrapOutput struct {
	p        Progress
	packages int
	partial  []byte
	last     []string
	total    int // packages that apt will install, as far as it said
	fetched  int
	settled  int
}

var newlyInstalled = regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed`)

func (w *bootstrapOutput) Write(b []byte) (int, error) {
	w.partial = append(w.partial, b...)
	for {
		line, rest, ok := bytes.Cut(w.partial, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		w.line(strings.TrimRight(string(line), "\r"))
		w.partial = rest
	}
}

func (w *bootstrapOutput) line(s string) {
	if s = strings.TrimSpace(s); s == "" {
		return
	}
	if w.last = append(w.last, s); len(w.last) > 20 {
		w.last = w.last[1:]
	}
	w.p.Log(s)
	if m := newlyInstalled.FindStringSubmatch(s); m != nil {
		w.total, _ = strconv.Atoi(m[1])
		w.fetched, w.settled = 0, 0
	}
	switch {
	case strings.HasPrefix(s, "I: running apt-get update"):
		w.p.Stage("fetching package lists")
	case strings.HasPrefix(s, "I: downloading packages"):
		w.p.Stage("downloading the essential packages")
	case strings.HasPrefix(s, "I: extracting archives"):
		w.p.Stage("unpacking the essential packages")
	case strings.HasPrefix(s, "I: installing essential"):
		w.total, w.settled = 0, 0
		w.p.Stage("installing the essential packages")
	case strings.HasPrefix(s, "I: installing remaining"):
		w.total, w.fetched, w.settled = 0, 0, 0
		w.p.Stage("installing packages")
	case strings.HasPrefix(s, "I: cleaning"):
		w.p.Stage("cleaning up")
	case w.total == 0:
	case strings.HasPrefix(s, "Get:"):
		// Downloading is given the first third; a warm cache skips it.
		w.fetched++
		w.p.Percent(min(33, 33*float64(w.fetched)/float64(w.total)))
	case strings.HasPrefix(s, "Unpacking ") || strings.HasPrefix(s, "Setting up "):
		w.settled++
		w.p.Percent(min(99, 33+66*float64(w.settled)/float64(2*w.total)))
	}
}

func (w *bootstrapOutput) tail() string { return strings.Join(w.last, "\n") }
