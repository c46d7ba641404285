package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/atoll-run/atoll/internal/durable"
	"golang.org/x/sys/unix"
)

// disks makes the private writable disks of sandboxes: a sparse ext4 image each,
// because its size is then a limit that no kernel needs quota support for. The
// empty file system is made once per size and cloned.
type disks struct {
	dir string // of the blank images

	mu sync.Mutex // one mkfs at a time
}

// create clones a blank image of the size to path and mounts it on dir.
func (d *disks) create(ctx context.Context, size int64, path, dir string) error {
	blank, err := d.blank(ctx, size)
	if err != nil {
		return err
	}
	if err := clone(path, blank, size); err != nil {
		return fmt.Errorf("cloning disk: %w", err)
	}
	if err := mountLoop(path, dir); err != nil {
		return fmt.Errorf("mounting disk: %w", err)
	}
	return nil
}

// blank returns the path of an empty file system of the size. No journal: what
// a host crash could damage does not outlive the crash anyway.
func (d *disks) blank(ctx context.Context, size int64) (string, error) {
	path := filepath.Join(d.dir, strconv.FormatInt(size, 10)+"-v2.ext4")
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := durable.Create(path, 0o600, durable.Process, func(f *os.File) error { return makeFileSystem(ctx, f, size) }); err != nil {
		return "", fmt.Errorf("making disk: %w", err)
	}
	return path, nil
}

// makeFileSystem makes the empty file system of a disk in f, which is empty.
func makeFileSystem(ctx context.Context, f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	// One inode per 8 KiB: trees of small files (package managers) run out of
	// the usual number before they run out of space. Without backups and room
	// for growing an empty file system is 60 KiB in four pieces, not 4 MiB.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-i", "8192", "-G", "128",
		"-O", "^has_journal,^resize_inode,sparse_super2",
		"-E", "num_backup_sb=0,packed_meta_blocks=1,lazy_itable_init=1,nodiscard,root_owner=0:0", f.Name()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %.200s", err, out)
	}
	return nil
}

// clone copies a sparse file: by reference where the file system can, else only
// the parts that hold data.
func clone(to, from string, size int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		start, err := unix.Seek(int(src.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for in, out := start, start; in < end; {
			n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(end-in), 0)
			if err != nil {
				return err
			}
			if n == 0 {
				return errors.New("blank image became shorter")
			}
		}
		offset = end
	}
	return nil
}

// mountLoop mounts the image on dir. The loop device belongs to the mount: it
// goes with it, also when this process is killed half-way.
func mountLoop(image, dir string) error {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	loop, err := attachLoop(file)
	if err != nil {
		return err
	}
	defer loop.Close()
	return unix.Mount(loop.Name(), dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOATIME, "noinit_itable")
}

// attachLoop finds a free loop device and binds it to file. Others on the host
// look for one at the same time, hence the repeats.
func attachLoop(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 4096}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], file.Name())
	for range 200 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("finding a loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(number), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EINVAL) && config.Info.Flags&unix.LO_FLAGS_DIRECT_IO != 0 {
			config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO // the host's file system cannot
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		}
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("binding loop device %d: %w", number, err)
		}
	}
	return nil, errors.New("no free loop device")
}
