package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/egress"
)

// checks lists every prerequisite in the order in which one needs another.
func checks(cfg Config) []Check {
	place := nearest(cfg.Data)
	return []Check{
		{Name: "root", Required: true, Run: checkRoot,
			Remedy: "run it as root: sandboxes need mounts, namespaces and cgroups"},
		{Name: "kernel", Required: true, Run: checkKernel,
			Remedy: "run a Linux kernel of 5.4 or newer on amd64 or arm64"},
		{Name: "overlayfs", Required: true, Run: func(ctx context.Context) (string, error) { return checkOverlay(place) },
			Remedy: "modprobe overlay; the data directory must be on a file system that can hold an upper directory (ext4, xfs, btrfs), not on another overlay"},
		{Name: "ext4 on loop devices", Required: true, Run: func(ctx context.Context) (string, error) { return checkLoop(ctx, place) },
			Remedy: "apt-get install e2fsprogs mount; modprobe loop ext4; in a container, pass /dev/loop-control and the loop devices"},
		{Name: "user namespaces", Required: true, Run: checkUserNS,
			Remedy: "sysctl user.max_user_namespaces=10000; if the kernel has it, sysctl kernel.unprivileged_userns_clone=1"},
		{Name: "network namespaces", Required: true, Run: checkNetNS,
			Remedy: "modprobe veth; in a container, run it privileged: a namespace and a veth pair are made for every session"},
		{Name: "nf_tables", Required: true, Run: checkNFTables,
			Remedy: "modprobe nf_tables; the kernel needs CONFIG_NF_TABLES"},
		{Name: "egress", Required: true, Run: func(ctx context.Context) (string, error) { return checkEgress(ctx, cfg) },
			Remedy: "modprobe nf_tables nft_redir nft_reject nft_ct nft_limit nft_connlimit nft_tproxy nf_conntrack; without its rules no sandbox gets a network"},
		{Name: "never reached", Run: func(context.Context) (string, error) { return checkSafetyList(cfg) },
			Remedy: "no sandbox is let out while the host's own addresses are not known"},
		{Name: "egress settings", Run: func(ctx context.Context) (string, error) { return checkEgressSettings(ctx, cfg) },
			Remedy: "keep such settings to tests and closed sites; they stand under egress in the configuration"},
		{Name: "cgroups", Required: true, Run: checkCgroups,
			Remedy: "mount cgroup v2 at /sys/fs/cgroup (or v1 with memory, cpu and pids), writable, and enable those controllers at the root"},
		{Name: "descriptors", Run: checkDescriptors,
			Remedy: "LimitNOFILE=65536 in the service's unit (systemctl edit atoll), or ulimit -n 65536 before the start; in a container, --ulimit nofile=65536"},
		{Name: "disk", Required: true, Run: func(context.Context) (string, error) { return checkDisk(cfg.Data, cfg.Cache) },
			Remedy: "free some space or move --data and --cache: the template base takes about 2 GB, its build twice that"},
		{Name: "room for sandboxes", Run: func(context.Context) (string, error) { return checkRoom(cfg) },
			Remedy: "free some space, lower limits.disk, or promise more than there is with host.disk_overcommit; sysctl kernel.pid_max=4194304, or lower limits.processes"},
		{Name: "mmdebstrap", Required: true, Run: checkMmdebstrap,
			Remedy: "apt-get install mmdebstrap debian-archive-keyring"},
		{Name: "CA certificates", Run: checkAuthorities,
			Remedy: "apt-get install ca-certificates; a company's own certificate goes to /usr/local/share/ca-certificates, then update-ca-certificates"},
		{Name: "resolver", Slow: true, Run: checkResolver,
			Remedy: "name a server that answers in /etc/resolv.conf: sandboxes reach hosts by names that this host resolves"},
		{Name: "registries", Slow: true, Run: checkRegistries,
			Remedy: "packages install from what the template's own managers are configured for; point the host's tools and templates at a mirror that this host reaches, or list it under registries in the configuration"},
		{Name: "gVisor", Required: true, Slow: true, Run: func(ctx context.Context) (string, error) { return checkSandbox(ctx, cfg) },
			Remedy: "the words above are the engine's; report them with atoll version and uname -a"},
	}
}

func checkRoot(context.Context) (string, error) {
	if id := os.Geteuid(); id != 0 {
		return "", fmt.Errorf("the user id is %d, not 0", id)
	}
	return "yes", nil
}

func checkKernel(context.Context) (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("asking for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return "", fmt.Errorf("kernel version %q cannot be read", release)
	}
	if major < 5 || major == 5 && minor < 4 {
		return "", fmt.Errorf("kernel %s is older than 5.4", release)
	}
	if !slices.Contains([]string{"amd64", "arm64"}, runtime.GOARCH) {
		return "", fmt.Errorf("gVisor does not run on %s", runtime.GOARCH)
	}
	return release + " " + runtime.GOARCH, nil
}

// nearest is the deepest directory on the way to path that exists: where a
// trial leaves the same traces as the server would.
func nearest(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path
		}
		path = filepath.Dir(path)
	}
}

// checkOverlay mounts an overlay in place, as sessions do.
func checkOverlay(place string) (found string, err error) {
	dir, err := os.MkdirTemp(place, ".atoll-doctor-")
	if err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return "", fmt.Errorf("making a directory: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", dir+"/merged", "overlay", 0, options); err != nil {
		return "", fmt.Errorf("mounting an overlay below %s: %w", place, err)
	}
	if err := unix.Unmount(dir+"/merged", 0); err != nil {
		return "", fmt.Errorf("unmounting %s/merged: %w", dir, err)
	}
	return "mounted below " + place, nil
}

// checkLoop makes a small ext4 image and mounts it, as every sandbox's disk is.
func checkLoop(ctx context.Context, place string) (found string, err error) {
	mkfs, err := find("mkfs.ext4")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(place, ".atoll-doctor-")
	if err != nil {
		return "", fmt.Errorf("making a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	disk, target := filepath.Join(dir, "disk"), filepath.Join(dir, "mounted")
	if err := errors.Join(os.Mkdir(target, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<20)); err != nil {
		return "", fmt.Errorf("making a disk image: %w", err)
	}
	for _, args := range [][]string{{mkfs, "-q", "-F", disk}, {"mount", "-o", "loop", disk, target}, {"umount", target}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, lastLine(string(out)))
		}
	}
	return "formatted and mounted below " + place, nil
}

// find looks a program up, in the system directories too: they are not on
// every user's PATH.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && !info.IsDir() {
			return filepath.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("there is no %s", name)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func checkUserNS(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("starting a process in a user namespace: %w", err)
	}
	return "made one", nil
}

// inNetNS runs do on a thread of its own in a new network namespace. The
// thread is not given back: it ends with the goroutine.
func inNetNS(do func() error) error {
	return egress.OnThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		defer ns.Close()
		return do()
	})
}

func checkNetNS(context.Context) (string, error) {
	err := inNetNS(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "doctor0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "doctor1"}); err != nil {
			return fmt.Errorf("making a veth pair: %w", err)
		}
		return nil
	})
	return "made one with a veth pair", err
}

func checkNFTables(context.Context) (string, error) {
	err := inNetNS(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("talking to nf_tables: %w", err)
		}
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "doctor"})
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("adding a table: %w", err)
		}
		return nil
	})
	return "added a table in a namespace", err
}

// checkCgroups tells which versions are mounted and whether the controllers
// that limits need are there.
func checkCgroups(context.Context) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("reading the mounts: %w", err)
	}
	defer f.Close()
	v1, v2 := map[string]string{}, ""
	for sc := bufio.NewScanner(f); sc.Scan(); {
		before, after, _ := strings.Cut(sc.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			v2 = left[4]
		case "cgroup":
			for _, name := range strings.Split(right[2], ",") {
				v1[name] = left[4]
			}
		}
	}
	return cgroupVerdict(v1, v2, os.ReadFile)
}

// cgroupVerdict judges the mounts: v1 is controller → mount point, v2 the
// unified mount point.
func cgroupVerdict(v1 map[string]string, v2 string, read func(string) ([]byte, error)) (string, error) {
	var unified []string
	if v2 != "" {
		b, err := read(filepath.Join(v2, "cgroup.controllers"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("reading the controllers: %w", err)
		}
		unified = strings.Fields(string(b))
	}
	which, legacy := "", 0
	var missing []string
	for _, name := range []string{"memory", "cpu", "pids"} {
		switch {
		case v1[name] != "":
			legacy++
		case !slices.Contains(unified, name):
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0:
		return "", fmt.Errorf("no controller for %s", strings.Join(missing, ", "))
	case legacy == 0:
		which = "v2"
	case v2 != "":
		which = "hybrid (v1 controllers, v2 beside them)"
	default:
		which = "v1"
	}
	return which + " with memory, cpu and pids", nil
}

// checkDisk looks at the file systems of both directories.
func checkDisk(data, cache string) (string, error) {
	const least = 5 << 30
	var found []string
	for _, dir := range []string{data, cache} {
		var st unix.Statfs_t
		if err := unix.Statfs(nearest(dir), &st); err != nil {
			return "", fmt.Errorf("asking for the space at %s: %w", dir, err)
		}
		free := st.Bavail * uint64(st.Bsize)
		if free < least {
			return "", fmt.Errorf("%s GiB are free at %s; at least %d are needed", gib(free), dir, least>>30)
		}
		found = append(found, fmt.Sprintf("%s GiB free at %s", gib(free), dir))
	}
	return strings.Join(found, ", "), nil
}

func gib(n uint64) string { return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) }

func checkMmdebstrap(ctx context.Context) (string, error) {
	path, err := find("mmdebstrap")
	if err != nil {
		return "", fmt.Errorf("%w: the built-in templates cannot be made", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", path, err, lastLine(string(out)))
	}
	return lastLine(string(out)), nil
}
