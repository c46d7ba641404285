package image

import (
	_ "embed"
	"strings"
)

// The programs that run inside a builder with a manager, before any package
// code: see their own first lines.
var (
	//go:embed hooks/pip.py
	pipHook string
	//go:embed hooks/npm.js
	npmHook string
	//go:embed hooks/gem.rb
	gemHook string
)

// hookText is a hook for the scratch space that builds use.
func hookText(text string) string { return strings.ReplaceAll(text, "@SCRATCH@", scratchDir) }
