package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// quietly runs a program whose output is no part of the build's log. A program
// that ends badly has no output; only a lost box is an error.
func (in *install) quietly(ctx context.Context, args []string) ([]byte, error) {
	quiet := *in
	quiet.out = &lineWriter{emit: func(string) {}, now: time.Now}
	var out limitedBuffer
	err := quiet.command(ctx, args, &out)
	if errors.Is(err, errTool) {
		return nil, nil
	}
	return out.buf.Bytes(), err
}

// confirm takes away from the builder what the download cache offered and the
// index does not state now, by file name and SHA-256: the manager would use it
// without a look. With them goes what the manager may have unpacked of them.
func (in *install) confirm(ctx context.Context, stated map[string][]string, unpacked ...string) error {
	if in.offered == nil {
		return nil
	}
	args := []string{"rm", "-rf", "--"}
	for at, file := range in.offered.files {
		if s := stated[path.Base(at)]; len(s) != 1 || s[0] != file.SHA256 {
			args = append(args, "/"+at)
		}
	}
	if len(args) == 3 {
		return nil
	}
	if err := in.command(ctx, append(args, unpacked...), nil); err != nil {
		return fmt.Errorf("taking back downloads that are out of date: %w", err)
	}
	return nil
}

// fetchScript has cargo download what an install of each entry will need, and
// prints the lock files. It asks the index which release an entry means, with
// an empty library that depends on it, and downloads that release's source; where
// it has a lock file, which the install will follow, what that names, else what
// the index has. No code of a package runs; what it cannot do is left to the install.
const fetchScript = `cd ` + scratchDir + ` && host=$(rustc -vV | sed -n 's/^host: //p') || exit 0
for spec in "$@"; do
	name=${spec%%@*}; version=${spec#"$name"}; version=${version#@}
	case $version in '') version='*' ;; [0-9]*) version="=$version" ;; esac
	rm -rf fetch && mkdir fetch && cd fetch && : > lib.rs || exit 0
	printf '[package]\nname = "atoll-fetch"\nversion = "0.0.0"\nedition = "2021"\n[lib]\npath = "lib.rs"\n[dependencies]\n%s = "%s"\n' "$name" "$version" > Cargo.toml
	cargo generate-lockfile -q || { cd ..; continue; }
	release=$(sed -n "/^name = \"$name\"\$/{n;s/^version = \"\(.*\)\"/\1/p;q}" Cargo.lock)
	cargo info -q "$name@$release" > /dev/null 2>&1
	locked=$(ls -d "$CARGO_HOME"/registry/src/*/"$name-$release"/Cargo.lock 2>/dev/null | head -n 1)
	if [ -n "$locked" ] && cargo fetch -q --locked --manifest-path "${locked%lock}toml" ${host:+--target "$host"}; then
		cat "$locked"
		sed -n "/^name = \"$name\"\$/,/^\$/p" Cargo.lock
	else
		cargo fetch -q ${host:+--target "$host"} && cat Cargo.lock
	fi
	cd ..
done
exit 0`

func prepareCargo(ctx context.Context, in *install) error {
	if !in.caching {
		return nil
	}
	args := []string{"/bin/sh", "-c", fetchScript, "sh"}
	for _, s := range in.specs {
		args = append(args, cargoArgument(s))
	}
	out, err := in.quietly(ctx, args)
	if err != nil {
		return err
	}
	in.witness.files = lockFiles(out)
	return in.confirm(ctx, in.witness.files, scratchDir+"/home/.cargo/registry/src")
}

func prepareGem(ctx context.Context, in *install) error {
	if !in.caching {
		return nil
	}
	args := []string{"ruby", "-e", hookText(gemHook), "--"}
	for _, s := range in.specs {
		args = append(args, s.text)
	}
	out, err := in.quietly(ctx, args)
	in.witness.hear(out)
	return err
}

// errStale says that a manager used a file of the download cache that the index
// does not state now.
var errStale = errors.New("a download of an earlier build is not what the index states now")

// checkGo holds the modules that go unpacked from the download cache against
// what the checksum database said in this builder: for a module that is kept
// from the database, go would not have asked.
func checkGo(tree *os.Root, v *view) error {
	stated := map[string]bool{}
	for _, w := range goWanted(nil, tree) {
		stated[w.path] = true
	}
	modules := scratchPath("go", "pkg", "mod")
	cache := path.Join(modules, "cache", "download") + "/"
	for at := range v.files {
		name, ok := strings.CutPrefix(at, cache)
		module, version, found := strings.Cut(strings.TrimSuffix(name, ".zip"), "/@v/")
		if !ok || !found || !strings.HasSuffix(name, ".zip") || stated[at] {
			continue
		}
		if _, err := fs.Stat(tree.FS(), path.Join(modules, module+"@"+version)); err == nil {
			return errStale
		}
	}
	return nil
}

// cacheNames are the packages of a list without versions: what connects it with
// the downloads of other lists.
func cacheNames(manager string, specs []spec) []string {
	var names []string
	for _, s := range specs {
		name := s.name
		if manager == "pip" {
			name = pipCanonical(name)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
