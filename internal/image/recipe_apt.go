package image

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
)

var aptRecipe = recipe{
	version: 1,
	probe:   []string{"apt-get", "--version"},
	env:     []string{"DEBCONF_NONINTERACTIVE_SEEN=true", "NEEDRESTART_SUSPEND=1", "APT_LISTCHANGES_FRONTEND=none"},
	prepare: prepareApt,
	command: []string{"apt-get", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confdef",
		"-o", "Dpkg::Options::=--force-confold", "-o", "Dpkg::Options::=--force-unsafe-io", "-o", "Acquire::Retries=3",
		"-o", "Dir::Cache::archives=" + aptArchives, "-o", "APT::Keep-Fds::=3", "-o", "DPkg::Pre-Invoke::=" + aptTells,
		"--no-remove", "install", "--"},
	options: aptOptions,
	shown:   []string{"apt-get", "-y", "--no-remove", "install", "--"},
	tells:   true, shell: true, wanted: aptWanted,
	finish:   finishApt,
	simulate: []string{"apt-get", "-s", "-q", "--no-remove", "install", "--"},
	list:     []string{"dpkg-query", "-W", "-f", `${binary:Package}\t${Version}\t${Architecture}\t${db:Status-Status}\t${Provides}\n`},
	parse:    parseDpkg,
	provides: aptProvides,
}

// aptOptions says whether recommended packages are installed, which a template
// or an image may have a setting of its own for.
func aptOptions(s Step) []string {
	if s.Recommends {
		return []string{"-o", "APT::Install-Recommends=true"}
	}
	return nil
}

// aptArchives is where apt keeps what it downloads.
const aptArchives = scratchDir + "/archives"

// aptTells is run by apt after it has downloaded and compared everything with
// the signed lists, and before dpkg or a script of a package runs.
const aptTells = "{ sha256sum " + aptArchives + `/*.deb >&3; echo '{"code":true}' >&3; } 2>/dev/null || true`

// policyScript keeps maintainer scripts from starting services during the
// build. It is taken away again, and commit would leave it out as well.
const policyScript = `set -e
mkdir -p /usr/sbin ` + aptArchives + `/partial
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d`

// prepareApt fetches the lists and asks for each name exactly: to apt-get
// itself a name that does not exist may be a regular expression.
func prepareApt(ctx context.Context, in *install) error {
	if err := in.command(ctx, []string{"/bin/sh", "-c", policyScript}, nil); err != nil {
		return err
	}
	update := []string{"apt-get", "-q", "-o", "Acquire::Retries=3", "-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any", "update"}
	if err := in.shownCommand(ctx, update); err != nil {
		return err
	}
	if err := aptExact(ctx, in); err != nil {
		return err
	}
	if in.offered == nil {
		return nil
	}
	// apt compares archives that are there with the lists by size only.
	args := append([]string{"apt-get", "-y", "-qq", "--print-uris", "--no-remove", "-o", "Acquire::ForceHash=SHA256", "-o", "Dir::Cache::archives=" + scratchDir + "/none"}, aptOptions(in.step)...)
	args = append(args, "install", "--")
	for _, s := range in.specs {
		args = append(args, s.text)
	}
	out, err := in.quietly(ctx, args)
	if err != nil {
		return err
	}
	return in.confirm(ctx, aptURIs(out))
}

// aptURIs reads what apt would download: file name and SHA-256.
func aptURIs(out []byte) map[string][]string {
	files := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		if sum, ok := strings.CutPrefix(f[3], "SHA256:"); ok {
			files[f[1]] = []string{sum}
		}
	}
	return files
}

// aptExact fails for a name that apt would take for a regular expression.
func aptExact(ctx context.Context, in *install) error {
	args := []string{"apt-cache", "policy", "--"}
	for _, s := range in.specs {
		args = append(args, s.name)
	}
	if !slices.ContainsFunc(in.specs, func(s spec) bool { return strings.ContainsAny(s.name, ".+") }) {
		return nil // then it is no expression, and apt-get says itself what it does not find
	}
	var out limitedBuffer
	if err := in.command(ctx, args, &out); err != nil {
		return err
	}
	known := aptKnown(out.buf.Bytes())
	for i, s := range in.specs {
		if !slices.Contains(known, s.name) {
			return &knownFailure{kind: KindPackageNotFound, index: i, pkg: s.text,
				phrase: fmt.Sprintf("no package %q: apt-cache knows none of exactly this name", s.name)}
		}
	}
	return nil
}

// aptKnown reads the names that apt-cache policy answered for.
func aptKnown(out []byte) []string {
	var names []string
	for line := range bytes.Lines(out) {
		text := strings.TrimRight(string(line), "\n")
		if name, ok := strings.CutSuffix(text, ":"); ok && !strings.HasPrefix(text, " ") {
			name, _, _ = strings.Cut(name, ":")
			names = append(names, name)
		}
	}
	return names
}

func finishApt(ctx context.Context, in *install) error {
	return in.command(ctx, []string{"/bin/sh", "-c", "rm -f /usr/sbin/policy-rc.d"}, nil)
}

func aptProvides(s spec, p installed) bool {
	if p.Name == s.name {
		return true
	}
	return slices.Contains(p.provides, s.name)
}
