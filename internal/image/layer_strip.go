package image

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Paths that never belong into a layer: what the build itself needed, what the
// machine gives to each sandbox, caches, lists and logs.
var (
	stripExact = map[string]bool{
		"etc/resolv.conf": true, "etc/hosts": true, "etc/hostname": true, "etc/mtab": true,
		"etc/machine-id": true, "var/lib/dbus/machine-id": true, "usr/sbin/policy-rc.d": true,
		"var/cache/ldconfig/aux-cache": true, ".dockerenv": true, "root/.wget-hsts": true,
	}
	stripTrees = []string{".atoll", "dev", "proc", "sys", "run", "tmp", "var/run", "var/tmp", "workspace", "mnt/session",
		"var/lib/apt/lists", "var/cache/apt", "var/cache/man", "root/.cache", "root/.npm", "root/.cargo", "root/.gem"}
	stripOld = []string{"var/cache/debconf/", "var/lib/dpkg/", "var/lib/apt/", "etc/"}
)

// strip reports whether a path of an upper directory stays out of the layer.
// Directories under /var/log stay: packages make them with owners that their
// services need.
func strip(rel string, st *unix.Stat_t) bool {
	if stripExact[rel] {
		return true
	}
	for _, tree := range stripTrees {
		if rel == tree || strings.HasPrefix(rel, tree+"/") {
			return true
		}
	}
	if strings.HasSuffix(rel, ".gem") && path.Base(path.Dir(rel)) == "cache" {
		return true // the archives that gem keeps of what it installed
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFSOCK, unix.S_IFBLK:
		return true
	case unix.S_IFCHR:
		return st.Rdev != 0 // device 0/0 is a whiteout: a deletion
	case unix.S_IFREG:
		if strings.HasPrefix(rel, "var/log/") {
			return true
		}
		for _, dir := range stripOld {
			// The -old copies and the lock files of databases, and the backups
			// that user tools make: passwd-, group-, shadow-.
			name, ok := strings.CutPrefix(rel, dir)
			if ok && !strings.Contains(name, "/") {
				return strings.HasSuffix(name, "-old") || dir == "etc/" && strings.HasSuffix(name, "-") || path.Base(name) == "lock" || name == "lock-frontend" || name == ".pwd.lock"
			}
		}
	}
	return false
}
