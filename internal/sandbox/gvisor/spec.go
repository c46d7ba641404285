package gvisor

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"

	"github.com/atoll-run/atoll/internal/durable"
	"github.com/atoll-run/atoll/internal/sandbox"
)

// guestCapabilities are what the guest needs to set the limits inside; it drops
// them then. None of them reaches outside of gVisor.
var guestCapabilities = []string{"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"}

// guestThreads is what the guest itself takes of the limit on processes.
const guestThreads = 6

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// gvisorConfig is the configuration of one sandbox's gVisor.
func (e *Engine) gvisorConfig(p place, network bool) (*config.Config, error) {
	flags := flag.NewFlagSet("atoll", flag.ContinueOnError)
	config.RegisterFlags(flags)
	settings := map[string]string{
		"root":              p.run,
		"shared-root":       e.config.RunDir,
		"network":           "none",
		"overlay2":          "none", // writes must reach the private directory on the host
		"ignore-cgroups":    "true", // ours: gVisor's would move the server's own threads on cgroup v1
		"in-sandbox-cgroup": "v2",   // the guest makes a cgroup in it that carries the limit on processes
		"host-settings":     "ignore",
		"allow-suid":        "true", // sudo and su for users other than root; what root may do inside is execCapabilities
		"panic-log":         p.panicLog(),
	}
	if network {
		settings["network"] = "sandbox"
	}
	if e.config.Debug {
		settings["debug"] = "true"
		settings["debug-log"] = filepath.Join(p.dir, "gvisor-%COMMAND%.log")
	}
	for name, value := range settings {
		if err := flags.Set(name, value); err != nil {
			return nil, fmt.Errorf("configuring gvisor: %s: %w", name, err)
		}
	}
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		return nil, fmt.Errorf("configuring gvisor: %w", err)
	}
	return conf, nil
}

// guestPath is where process 1 sees its own program: a read-only mount, because a
// descriptor of the host would not survive a checkpoint.
const guestPath = "/dev/atoll-guest"

// useGuest makes the guest program of a file of the host the one that process 1
// runs.
func useGuest(s *specs.Spec, program string) {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == guestPath {
			s.Mounts[i].Source = program
		}
	}
}

// ociSpec describes the sandbox to gVisor. Its one process is the guest.
func ociSpec(p place, s sandbox.Spec, guest string) *specs.Spec {
	namespaces := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
	}
	if s.NetNS != "" {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: s.NetNS})
	}
	// Memory files count as memory. Half of it keeps a full /dev/shm an ENOSPC
	// instead of the end of the sandbox.
	shm := "size=" + strconv.FormatInt(s.Limits.MemoryBytes/2, 10)
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: p.root()},
		Process: &specs.Process{
			Args: []string{guestPath, "init", strconv.Itoa(s.Limits.Processes + guestThreads), strconv.FormatInt(s.Limits.MemoryBytes, 10)},
			Env:  []string{defaultPath, "GOMAXPROCS=1"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: guestCapabilities, Effective: guestCapabilities, Permitted: guestCapabilities,
			},
			// For who asks (`ulimit -u`, `make -j`, thread pools). The cgroup inside
			// is what holds the limit, for all users together.
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: uint64(s.Limits.Processes), Hard: uint64(s.Limits.Processes)}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", shm}},
			{Destination: guestPath, Type: "bind", Source: guest, Options: []string{"bind", "ro", "nosuid", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: namespaces},
	}
}

// writeJSON writes v to a file of the sandbox's directory, which has the old
// content or the new one whenever this process is killed.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, data, 0o600, durable.Process)
}
