package gvisor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox"
)

// bareDisks is an engine without sandboxes, on a file system of its own of the
// size: only the disks are made and written to, from outside.
func bareDisks(t *testing.T, size int64, config Config) *Engine {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ATOLL_CI") != "" {
			t.Fatal("needs root for mounts")
		}
		t.Skip("needs root for mounts")
	}
	dir := t.TempDir()
	host, mount := filepath.Join(dir, "host.ext4"), filepath.Join(dir, "host")
	if err := errors.Join(os.WriteFile(host, nil, 0o600), os.Truncate(host, size), os.Mkdir(mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", host).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := mountLoop(host, mount); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountHost(t, mount) })
	config.Dir = mount
	e := &Engine{config: config, log: slog.New(slog.DiscardHandler), disks: disks{dir: filepath.Join(mount, "blank")},
		ledger: ledger{pending: map[string]claim{}, bounded: map[string]bool{}}}
	if err := errors.Join(e.config.completeRoom(mount), os.Mkdir(e.disks.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	return e
}

// unmountHost waits until the loop devices have let go of their images.
func unmountHost(t *testing.T, mount string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Unmount(mount, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			t.Errorf("unmounting the small host: %v", err)
			return
		}
	}
}

// addDisk makes the disk of a sandbox and returns where it is mounted.
func addDisk(t *testing.T, e *Engine, id string, size int64) string {
	t.Helper()
	p := e.place(id)
	if err := os.MkdirAll(p.disk(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.disks.create(t.Context(), size, p.image(), p.disk()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(p.disk()); err != nil {
			t.Error(err)
		}
	})
	if err := e.balanceNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p.disk()
}

// fillDisk writes noise to a file until it has so many bytes or there is no space,
// syncs, and returns how many bytes were accepted and their digest.
func fillDisk(t *testing.T, file string, size int64) (int64, []byte) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err != nil {
		return 0, nil
	}
	defer f.Close()
	source, digest, piece := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%32.32s", file)))), sha256.New(), make([]byte, 1<<16)
	var done int64
	for done < size {
		_, _ = source.Read(piece)
		n, err := f.Write(piece)
		digest.Write(piece[:n])
		done += int64(n)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
	return done, digest.Sum(nil)
}

// onDisk is the digest of a file as the disk has it, past the page cache.
func onDisk(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	memory, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	digest := sha256.New()
	for {
		n, err := f.Read(memory)
		digest.Write(memory[:n])
		if err == io.EOF {
			return digest.Sum(nil)
		}
		if err != nil {
			t.Fatalf("reading %s from the disk: %v", file, err)
		}
	}
}

func hostFree(t *testing.T, e *Engine) int64 {
	free, err := e.diskFree()
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// TestGrowthStopsAtReserve writes to disks that are promised more than the host
// has: they are full before the host is, whatever is done to them, and what a
// sync acknowledged is on the disk. Then a stranger takes what is left.
func TestGrowthStopsAtReserve(t *testing.T) {
	const reserve = 64 << 20
	e := bareDisks(t, 512<<20, Config{MinFreeBytes: reserve, DiskOvercommit: 4})
	greedy, neighbour := addDisk(t, e, "greedy", 480<<20), addDisk(t, e, "neighbour", 480<<20)
	type kept struct {
		bytes  int64
		digest []byte
	}
	files := map[string]kept{}
	write := func(dir, name string, size int64) int64 {
		n, digest := fillDisk(t, filepath.Join(dir, name), size)
		if n > 0 {
			files[filepath.Join(dir, name)] = kept{n, digest}
		}
		if err := e.balanceNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := write(neighbour, "first", 40<<20); n != 40<<20 {
		t.Fatalf("the neighbour wrote %d bytes of its first file", n)
	}
	// Room that is claimed and not written.
	f, err := os.Create(filepath.Join(greedy, "claimed"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 60<<20); err != nil {
		t.Fatal(err)
	}
	if n := write(greedy, "big", 1<<30); n < 20<<20 || n > 400<<20 {
		t.Errorf("the greedy one wrote %d MiB", n>>20)
	}
	// Files in ever new places.
	for round := range 4 {
		if err := os.Remove(filepath.Join(greedy, "big")); err != nil {
			t.Fatal(err)
		}
		write(greedy, "big", 1<<30)
		if free := hostFree(t, e); free < reserve/2 {
			t.Errorf("round %d: %d MiB are free on the host", round, free>>20)
		}
	}
	if _, err := f.Write(bytes.Repeat([]byte{1}, 60<<20)); err != nil {
		t.Errorf("writing where there was room already: %v", err)
	}
	write(neighbour, "second", 1<<30)
	compare := func() {
		for file, want := range files {
			if !bytes.Equal(onDisk(t, file), want.digest) {
				t.Fatalf("%s: %d bytes were acknowledged, and the disk holds something else", file, want.bytes)
			}
		}
	}
	compare()
	stranger := filepath.Join(e.config.Dir, "stranger")
	if out, err := exec.Command("fallocate", "-l", strconv.FormatInt(hostFree(t, e)-16<<20, 10), stranger).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := e.balanceNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := write(greedy, "more", 1<<20) + write(neighbour, "third", 1<<20); n != 0 {
		t.Errorf("%d bytes were accepted on a host whose reserve is taken", n)
	}
	compare()
	if err := errors.Join(os.Remove(stranger), os.Remove(filepath.Join(greedy, "big"))); err != nil {
		t.Fatal(err)
	}
	if err := e.balanceNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := write(neighbour, "fourth", 16<<20); n != 16<<20 {
		t.Errorf("with space again the neighbour wrote %d bytes", n)
	}
}

// TestGrowthUnbounded: while all disks fit, nothing limits one below its size.
func TestGrowthUnbounded(t *testing.T) {
	e := bareDisks(t, 512<<20, Config{MinFreeBytes: 64 << 20})
	one := addDisk(t, e, "one", 160<<20)
	addDisk(t, e, "two", 160<<20)
	if err := e.admitDiskNow(t, 160<<20); !errors.Is(err, sandbox.ErrCapacity) {
		t.Errorf("a third disk: %v", err)
	}
	stranger := filepath.Join(e.config.Dir, "stranger")
	if out, err := exec.Command("fallocate", "-l", "200M", stranger).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := e.balanceNow(t.Context()); err != nil || len(e.ledger.bounded) != 2 {
		t.Fatalf("bounded: %v, %v", e.ledger.bounded, err)
	}
	if err := os.Remove(stranger); err != nil {
		t.Fatal(err)
	}
	if err := e.balanceNow(t.Context()); err != nil || len(e.ledger.bounded) != 0 {
		t.Fatalf("bounded: %v, %v", e.ledger.bounded, err)
	}
	if n, _ := fillDisk(t, filepath.Join(one, "big"), 1<<30); n < 145<<20 {
		t.Errorf("a disk of 160 MiB took %d", n>>20)
	}
	if err := e.admitDiskNow(t, 80<<20); err != nil {
		t.Errorf("a disk for which there is room: %v", err)
	}
}

// admitDiskNow is admitDisk for what the host has now.
func (e *Engine) admitDiskNow(t *testing.T, size int64) error {
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	r, err := e.room()
	if err != nil {
		t.Fatal(err)
	}
	return e.admitDisk(t.Context(), r, size)
}
