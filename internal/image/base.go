package image

import "time"

// Base is a built version of a template: an immutable root file system and what is known about it.
type Base struct {
	// Template is the name it was built for.
	Template string `json:"template"`
	// Digest names this version; it is part of the key of every layer above it.
	Digest string `json:"digest"`
	// Dir is the root file system on the host. It must never be written.
	Dir string `json:"-"`
	// Arch is Go's name of the architecture: amd64, arm64.
	Arch string `json:"arch"`
	// Env is the process environment of everything that runs on the base, KEY=VALUE.
	Env []string `json:"env"`
	// Packages are installed on it before those of an environment, as layers of their own.
	Packages Packages `json:"-"`
	// Managers maps apt, cargo, gem, go, npm and pip to their versions; one that is missing is absent.
	Managers map[string]string `json:"managers"`
	// Registries are the hosts that the managers use.
	Registries []Registry `json:"registries"`
	// Runtimes maps the names of docs/templates.md to versions.
	Runtimes map[string]string `json:"runtimes"`
	// SizeBytes is what the root takes on the disk.
	SizeBytes int64 `json:"size_bytes"`
	// CreatedAt is when it was built.
	CreatedAt time.Time `json:"created_at"`
}
