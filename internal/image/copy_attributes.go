package image

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// setAttributes gives what lies at a path below a directory its owner, mode,
// extended attributes and time, in the order in which they survive: a change of
// owner clears set-id bits and file capabilities.
func setAttributes(dir int, rel string, st *unix.Stat_t, attrs map[string]string) error {
	if err := unix.Fchownat(dir, rel, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, rel, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if len(attrs) > 0 {
		if err := withHandle(dir, rel, func(name string) error {
			for attr, value := range attrs {
				if err := unix.Setxattr(name, attr, []byte(value), 0); err != nil {
					return fmt.Errorf("setting %s: %w", attr, err)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	return unix.UtimesNanoAt(dir, rel, times, unix.AT_SYMLINK_NOFOLLOW)
}

// withHandle calls do with a short name for what lies at a path below a
// directory, which may be a symbolic link: extended attributes are asked for by
// name, and the path may be as long as a path can be.
func withHandle(dir int, rel string, do func(name string) error) error {
	fd, err := unix.Openat(dir, rel, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeAll([]int{fd})
	return do("/proc/self/fd/" + strconv.Itoa(fd))
}

// xattrsAt reads the extended attributes that belong into a layer, of what lies
// at a path below a directory. Overlay's own references to the inodes of one
// mount are left out; what would make a layer depend on another's files is refused.
func xattrsAt(dir int, rel string) (attrs map[string]string, err error) {
	err = withHandle(dir, rel, func(name string) error {
		attrs, err = xattrs(name)
		return err
	})
	return attrs, err
}

func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<12)
	n, err := unix.Listxattr(path, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 1<<16)
		n, err = unix.Listxattr(path, buf)
	}
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	attrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		switch {
		case name == "trusted.overlay.redirect" || name == "trusted.overlay.metacopy":
			return nil, fmt.Errorf("the overlay was mounted with %s", strings.TrimPrefix(name, "trusted.overlay."))
		case strings.HasPrefix(name, "trusted.overlay.") && name != "trusted.overlay.opaque":
			continue
		case strings.HasPrefix(name, "trusted.") && name != "trusted.overlay.opaque",
			strings.HasPrefix(name, "security.") && name != "security.capability":
			continue // the host's own: labels, the sandbox's bookkeeping
		}
		value := make([]byte, 1<<16)
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		attrs[name] = string(value[:n])
	}
	return attrs, nil
}
