package image

import (
	"context"
	"strings"
)

// prepareGo has the build cache of an install begin with the template's standard
// library. Go knows what is in it by the compiler and the sources, so that the
// result is the same with it and without.
func prepareGo(ctx context.Context, in *install) error {
	return in.command(ctx, []string{"/bin/sh", "-c", "if [ -d /" + goBuildCache + " ]; then cp -rs /" + goBuildCache + " " + scratchDir + "/go-build; fi"}, nil)
}

func goArgument(s spec) string {
	if s.version == "" {
		return s.text + "@latest"
	}
	return s.text
}

func goProvides(s spec, p installed) bool {
	if root, all := strings.CutSuffix(s.name, "/..."); all {
		return p.Name == root || strings.HasPrefix(p.Name, root+"/")
	}
	return p.Name == s.name
}
