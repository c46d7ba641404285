package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The ways in which the content of a file enters a layer's digest.
const (
	// contentPlain hashes every byte: layers of old versions.
	contentPlain = 0
	// contentBlocks hashes the size, and place and bytes of each block that is
	// not zero, so that a file with large holes is read as fast as what it
	// stores, and that its digest does not depend on where a file system puts holes.
	contentBlocks = 2
)

var zeroBlock [diskBlock]byte

// contentCopy copies one file and hashes it.
type contentCopy struct {
	ctx    context.Context
	in     *os.File
	out    *os.File // nil: hashed only
	room   *copyRoom
	format int // contentPlain or contentBlocks
	sum    hash.Hash
	buf    []byte // a multiple of diskBlock
	stored int64  // bytes that are in no hole and in no block of zeros
}

// run copies size bytes. Blocks of zeros become holes.
func (c *contentCopy) run(size int64) error {
	if c.format == contentBlocks {
		c.number(size)
	}
	for at := int64(0); at < size; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := c.in.ReadAt(c.buf[:min(int64(len(c.buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return errors.New("the file is shorter than it says")
		}
		if n%diskBlock != 0 && at+int64(n) < size {
			n -= n % diskBlock // a short read
			if n == 0 {
				return errors.New("the file cannot be read in whole blocks")
			}
		}
		zeros, err := c.piece(c.buf[:n], at)
		if err != nil {
			return err
		}
		at += int64(n)
		if zeros && c.format == contentBlocks {
			if at, err = c.nextData(at, size); err != nil {
				return err
			}
		}
	}
	if c.out == nil {
		return nil
	}
	return c.out.Truncate(size)
}

func (c *contentCopy) number(n int64) {
	c.sum.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// piece copies what lies at an offset, and tells if it was zeros only.
func (c *contentCopy) piece(p []byte, at int64) (zeros bool, err error) {
	if c.format == contentPlain {
		c.sum.Write(p)
	}
	zeros = true
	for len(p) > 0 {
		full, n := 0, 0 // a run of blocks that are not zero
		for full < len(p) {
			n = min(diskBlock, len(p)-full)
			block := p[full : full+n]
			if bytes.Equal(block, zeroBlock[:n]) {
				break
			}
			if c.format == contentBlocks {
				c.number(at + int64(full))
				c.sum.Write(block)
			}
			full += n
		}
		if full > 0 {
			zeros = false
			if err := c.write(p[:full], at); err != nil {
				return false, err
			}
		}
		if full < len(p) {
			full += n // the block of zeros
		}
		p, at = p[full:], at+int64(full)
	}
	return zeros, nil
}

func (c *contentCopy) write(p []byte, at int64) error {
	c.stored += int64(len(p))
	if c.out == nil {
		return nil
	}
	if err := c.room.take(int64(len(p)), 0); err != nil {
		return err
	}
	_, err := c.out.WriteAt(p, at)
	return err
}

// nextData finds the block from which a file goes on behind a hole.
func (c *contentCopy) nextData(at, size int64) (int64, error) {
	data, err := unix.Seek(int(c.in.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil // nothing but a hole up to the end
	case errors.Is(err, unix.EINVAL):
		return at, nil // a file system that does not tell
	case err != nil:
		return 0, fmt.Errorf("looking for holes: %w", err)
	}
	return max(at, data/diskBlock*diskBlock), nil
}

// hasHoles reports whether a file has holes: then its size says nothing about
// what it takes.
func hasHoles(f *os.File, size int64) bool {
	hole, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	_, _ = f.Seek(0, io.SeekStart)
	return err == nil && hole < size
}

// contextReader ends a copy when a context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads on while the context lasts.
func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
