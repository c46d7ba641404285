package main

import (
	"runtime"
	"runtime/debug"
)

// version is stamped by the linker: -X main.version=v1.2.3.
var version string

type versionCmd struct{}

// Run prints the version, the platform and the Go and gVisor versions inside.
func (versionCmd) Run(io *streams) error {
	err := say(io.out, "atoll %s %s/%s %s", versionString(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if v := moduleVersion("gvisor.dev/gvisor"); v != "" {
		say(io.out, " gvisor %s", v)
	}
	sayText(io.out, "\n")
	return err
}

// versionString is the stamped version, or what the Go tool recorded.
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return "development"
}

func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == path {
			return dep.Version
		}
	}
	return ""
}
