package image

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
)

// cargoArgument writes a spec as cargo takes it. cargo reads a bare version as
// one whole release, and refuses a part of one: there it is a requirement, as
// everywhere else in cargo.
func cargoArgument(s spec) string {
	req := strings.Trim(s.version, " ")
	if req == "" || exactSem.MatchString(req) || strings.ContainsAny(req[:1], "<>=^~") || strings.Contains(req, "*") {
		return s.text
	}
	return s.name + "@^" + req
}

// installCargo follows the lock file that comes with a program: what its
// authors built it with. If that does not build with the template's compiler,
// it is tried with the newest releases that the compiler can build.
func installCargo(ctx context.Context, in *install, r recipe, specs ...string) error {
	locked := r
	at := slices.Index(r.command, "--")
	locked.command = slices.Insert(slices.Clone(r.command), at, "--locked")
	err := in.tool(ctx, locked, specs...)
	if !errors.Is(err, errTool) || ctx.Err() != nil || !slices.ContainsFunc(in.out.lines(), lockedFailed.MatchString) {
		return err
	}
	in.say("the versions of its lock file do not build here: again with newer ones")
	return in.tool(ctx, r, specs...)
}

// lockedFailed are the words of cargo for what other versions of dependencies
// may help against.
var lockedFailed = regexp.MustCompile("^error: (could not compile `|the lock file .* needs to be updated|rustc .* is not supported by the following package)|requires rustc [0-9.]+|lock file version")
