package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a sandbox meets ENOSPC before the host does.
//
// Writes to a loop device that the host's file system has no room for are lost,
// and a program inside may never hear of it: sync(2) succeeds. So a disk must not
// take on what the host cannot hold. As long as all disks could grow to their
// limits at the same time nothing needs to be done. Once they could not, because
// more is promised than there is or because something else took the space, the
// free space without the reserve is divided among the disks, and each may grow by
// its share only. The limit is ext4's own number of reserved clusters of the
// mounted disk: a write inside is refused as it reserves its blocks, so whatever
// was accepted has room on the host. The shares are divided anew several times a
// second, and hold by themselves while no server runs.
//
// What a program deletes must then be given back to the host at once (discard):
// else it could write in ever new places of its disk and take space without
// having more. That makes deleting slower, while space is short only.

// balanceInterval is how often the shares are divided anew.
const balanceInterval = 250 * time.Millisecond

// blockSize is that of the disks' file systems.
const blockSize = 4096

// watchGrowth keeps the disks' limits in step with the host's free space until
// ctx ends.
func (e *Engine) watchGrowth(ctx context.Context) {
	tick := time.NewTicker(balanceInterval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		e.ledger.mu.Lock()
		_, err := e.balance(ctx)
		bounded := slices.Collect(maps.Keys(e.ledger.bounded))
		e.ledger.mu.Unlock()
		for _, id := range bounded {
			err = errors.Join(err, gone(flush(e.place(id).disk())))
		}
		if err != nil && !failing && ctx.Err() == nil {
			e.log.ErrorContext(ctx, "limiting how disks grow", "error", err)
		}
		failing = err != nil
	}
}

// flush writes to the host what a disk holds in memory. A sandbox's own sync does
// not (its overlay is volatile), so it could wait for half a minute, and somebody
// else take the room that it needs.
func flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("writing back %s: %w", dir, err)
	}
	return nil
}

// balanceNow is balance for a disk that was mounted just now: it has its limit
// before anything can write to it.
func (e *Engine) balanceNow(ctx context.Context) error {
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	_, err := e.balance(ctx)
	return err
}

// growing is a mounted disk whose growth is being limited.
type growing struct {
	image
	free  int64  // bytes that a program inside may still use up
	file  string // where ext4 takes the number of reserved clusters
	share int64  // bytes by which it may grow now
}

// debt is how much the image will grow by what is promised already: written and
// on its way to the host, allocated and not written, and the file system's tables.
func (g growing) debt() int64 { return max(0, g.size-g.free-g.allocated) }

// balance divides the host's free space among the disks if it does not suffice
// for all of them, and else lifts their limits. It returns how much is left to
// divide, in bytes; negative when there is not even room for what is promised.
// The caller holds ledger.mu.
func (e *Engine) balance(ctx context.Context) (left int64, err error) {
	images, err := e.images()
	if err != nil {
		return 0, err
	}
	free, err := e.diskFree()
	if err != nil {
		return 0, err
	}
	var unused int64
	for _, image := range images {
		unused += image.unused()
	}
	reserve := max(0, e.config.MinFreeBytes)
	if unused <= free-reserve {
		return free - reserve - unused, e.liftBounds()
	}
	var errs []error
	var disks []*growing
	for _, image := range images {
		g, err := e.bound(ctx, image)
		switch {
		case errors.Is(err, fs.ErrNotExist): // unmounted: it does not grow
		case err != nil:
			errs = append(errs, fmt.Errorf("disk of sandbox %s: %w", image.id, err))
		default:
			disks = append(disks, g)
		}
	}
	if free, err = e.diskFree(); err != nil { // bound may have given some back
		return 0, err
	}
	left = free - reserve
	for _, g := range disks {
		left -= g.debt()
	}
	divide(disks, max(0, left))
	// Shares that shrink come first, so that their sum is never too large.
	for _, grow := range []bool{false, true} {
		for _, g := range disks {
			errs = append(errs, g.limit(grow))
		}
	}
	return left, errors.Join(errs...)
}

// divide gives each disk an equal share of left, and what one cannot use to the
// others.
func divide(disks []*growing, left int64) {
	slices.SortFunc(disks, func(a, b *growing) int { return int(min(max(a.free-b.free, -1), 1)) })
	for i, g := range disks {
		g.share = min(g.free, left/int64(len(disks)-i))
		left -= g.share
	}
}

// bound looks at a disk whose growth has to be limited. From the first time on
// the disk gives back what is deleted in it.
func (e *Engine) bound(ctx context.Context, i image) (*growing, error) {
	dir := e.place(i.id).disk()
	file, err := reservedFile(dir)
	if err != nil {
		return nil, err
	}
	g := &growing{image: i, file: file}
	if !e.ledger.bounded[i.id] {
		if g.free, err = freeIn(dir); err != nil {
			return nil, err
		}
		if err := g.limit(false); err != nil { // nothing more, until its share is known
			return nil, err
		}
		if err := giveBack(dir); err != nil {
			return nil, err
		}
		e.ledger.bounded[i.id] = true
		e.log.WarnContext(ctx, "the host's disk is short of space: a sandbox's disk may grow by its share only", "sandbox", i.id)
	}
	if g.free, err = freeIn(dir); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(e.place(i.id).image(), &st); err != nil {
		return nil, err
	}
	g.allocated = st.Blocks * 512
	return g, nil
}

// limit lets the disk grow by its share and no more, if that is a larger limit
// than now (grow) or a smaller one (not grow).
func (g *growing) limit(grow bool) error {
	data, err := os.ReadFile(g.file)
	if err != nil {
		return gone(err)
	}
	now, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return fmt.Errorf("reading the reserved clusters: %w", err)
	}
	want := max((g.free-g.share)/blockSize, 0)
	if want == now || grow != (want < now) {
		return nil
	}
	return gone(os.WriteFile(g.file, []byte(strconv.FormatInt(want, 10)), 0))
}

// gone forgives that a disk was unmounted meanwhile.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// liftBounds lets all disks grow to their limits. The caller holds ledger.mu.
func (e *Engine) liftBounds() error {
	var errs []error
	for id := range e.ledger.bounded {
		var st unix.Stat_t
		if err := unix.Stat(e.place(id).image(), &st); err != nil {
			delete(e.ledger.bounded, id) // destroyed
			continue
		}
		file, err := reservedFile(e.place(id).disk())
		if err == nil {
			err = os.WriteFile(file, []byte(strconv.FormatInt(usualReserved(st.Size), 10)), 0)
		}
		if gone(err) != nil {
			errs = append(errs, fmt.Errorf("disk of sandbox %s: %w", id, err))
			continue
		}
		delete(e.ledger.bounded, id)
		e.log.Info("the host's disk has space again: a sandbox's disk may grow to its limit", "sandbox", id)
	}
	return errors.Join(errs...)
}

// usualReserved is the number of clusters that ext4 reserves by itself: two per
// cent, at most 4096.
func usualReserved(size int64) int64 { return min(size/blockSize/50, 4096) }

// freeIn is how many bytes programs may still use up on a mounted disk, without
// regard to its limit.
func freeIn(dir string) (int64, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return 0, err
	}
	if disk.Type != unix.EXT4_SUPER_MAGIC || disk.Bsize != blockSize {
		return 0, fs.ErrNotExist
	}
	return int64(disk.Bfree) * disk.Bsize, nil // what is reserved for delayed writes is not free
}

// reservedFile is the control file of the file system that is mounted on dir.
// ErrNotExist when none is.
func reservedFile(dir string) (string, error) {
	if _, err := freeIn(dir); err != nil { // the host's file system is below an unmounted disk
		return "", err
	}
	var st, parent unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Stat(filepath.Dir(dir), &parent)); err != nil {
		return "", err
	}
	if st.Dev == parent.Dev {
		return "", fs.ErrNotExist
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return "", err
	}
	return filepath.Join("/sys/fs/ext4", filepath.Base(link), "reserved_clusters"), nil
}

// ioctlFITRIM is the number of the FITRIM request, which golang.org/x/sys/unix
// does not have; fitrim is its argument (struct fstrim_range).
const ioctlFITRIM = 0xc0185879

type fitrim struct{ start, length, minimum uint64 }

// giveBack returns the free blocks of a disk to the host, now and from now on.
func giveBack(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, "discard"); err != nil {
		return fmt.Errorf("mounting with discard: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	all := fitrim{length: 1 << 62}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlFITRIM, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return fmt.Errorf("trimming: %w", errno)
	}
	return nil
}
