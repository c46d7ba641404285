package image

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// diskBlock is the unit in which room on a disk is counted, in bytes: what
	// the smallest file takes on the usual file systems.
	diskBlock = 4096
	// bytesPerInode is how many bytes of a quota allow one file or directory,
	// the ratio in which ext4 makes inodes for its blocks.
	bytesPerInode = 16 << 10
	// roomCheckBytes and roomCheckInodes are how much is copied between two
	// looks at the free space of the host's file system.
	roomCheckBytes  = 1 << 20
	roomCheckInodes = 256
)

// blocksOf rounds bytes up to whole blocks.
func blocksOf(n int64) int64 { return (n + diskBlock - 1) / diskBlock * diskBlock }

// inodeQuota is how many files and directories a quota in bytes allows.
func inodeQuota(quota int64) int64 { return (quota + bytesPerInode - 1) / bytesPerInode }

// defaultReserve is what stays free on a file system of the size, in bytes,
// when the operator says nothing: a twentieth, at most 1 GiB.
func defaultReserve(size int64) int64 { return min(size/20, 1<<30) }

// errSandboxRoom says that what comes out of a sandbox takes more blocks or
// inodes on the host than the sandbox's own disk has.
var errSandboxRoom = errors.New("more than the sandbox's own disk holds")

// errHostReserve says that a copy would take what is kept free on the host's
// file system. It counts as ENOSPC.
var errHostReserve = fmt.Errorf("the reserve of the host's file system is reached: %w", unix.ENOSPC)

// copyRoom counts what a copy out of a sandbox takes on the host and ends it at
// the limits of the sandbox and of the host. The zero limits are none.
type copyRoom struct {
	maxBytes, maxInodes int64 // of the sandbox's own disk; 0 means no limit of its own
	reserve             int64 // bytes that stay free on the host's file system; 0 means [defaultReserve]
	host                int   // descriptor of a directory on the host's file system

	bytes, inodes           int64 // taken so far, in whole blocks
	sinceBytes, sinceInodes int64 // taken since the last look at the host's file system
	lookedAtHost            bool
}

// sandboxLimits takes the limits from the file system on which the sandbox
// wrote: an image of its own has the size that the sandbox may use.
func (r *copyRoom) sandboxLimits(dir int) error {
	var own, host unix.Statfs_t
	if err := errors.Join(unix.Fstatfs(dir, &own), unix.Fstatfs(r.host, &host)); err != nil {
		return fmt.Errorf("asking for the size of the sandbox's disk: %w", err)
	}
	if own.Fsid != host.Fsid {
		r.maxBytes, r.maxInodes = int64(own.Blocks)*own.Bsize, int64(own.Files)
	}
	return nil
}

// take counts bytes, in whole blocks, and inodes that are about to be written.
func (r *copyRoom) take(bytes, inodes int64) error {
	bytes = blocksOf(bytes)
	r.bytes, r.inodes = r.bytes+bytes, r.inodes+inodes
	r.sinceBytes, r.sinceInodes = r.sinceBytes+bytes, r.sinceInodes+inodes
	if r.maxBytes > 0 && r.bytes > r.maxBytes || r.maxInodes > 0 && r.inodes > r.maxInodes {
		return errSandboxRoom
	}
	if r.lookedAtHost && r.sinceBytes < roomCheckBytes && r.sinceInodes < roomCheckInodes {
		return nil
	}
	r.lookedAtHost, r.sinceBytes, r.sinceInodes = true, 0, 0
	return hostHasRoom(r.host, r.reserve, bytes+roomCheckBytes)
}

// giveBack counts what was taken and removed again.
func (r *copyRoom) giveBack(bytes, inodes int64) {
	r.bytes, r.inodes = r.bytes-blocksOf(bytes), r.inodes-inodes
}

// hostHasRoom is errHostReserve if bytes more, or some inodes more, would take
// what is kept free on the file system of a directory.
func hostHasRoom(dir int, reserve, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir, &st); err != nil {
		return fmt.Errorf("asking for the free space of the host's file system: %w", err)
	}
	if reserve <= 0 {
		reserve = defaultReserve(int64(st.Blocks) * st.Bsize)
	}
	if int64(st.Bavail)*st.Bsize < reserve+bytes {
		return errHostReserve
	}
	// A file system that makes inodes as they are needed has no number of them.
	if st.Files > 0 && st.Ffree < st.Files/20+roomCheckInodes && st.Ffree < 10_000 {
		return errHostReserve
	}
	return nil
}
