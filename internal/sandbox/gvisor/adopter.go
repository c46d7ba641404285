package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
)

// What the adopter, the process that reads an image, may take at most.
const (
	adopterTime       = 2 * time.Minute // until the server kills it
	adopterCPUSeconds = 60
	adopterMemory     = 512 << 20 // bytes of memory that it can write to
	adopterAddresses  = 4 << 30   // bytes of addresses; Go reserves far more than it uses
	adopterFiles      = 32        // descriptors
	adopterWords      = 2 << 10   // bytes of its error text that are looked at
	maxStateBytes     = 1 << 30   // bytes of an image's objects; the sandbox's memory is in other files
)

// adopt takes the mark of a started command from the processes in an image: see
// adoptTasks. What the image holds comes from a sandbox's memory, so nothing of
// it is read here, where a fault would be a fault of root: a process without
// privileges reads it and writes a changed copy, which takes the place of the
// original. On an error the image is as it was.
func adopt(ctx context.Context, image string) (err error) {
	path := filepath.Join(image, checkpointfiles.StateFileName)
	in, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("reading image: %w", err)
	}
	defer in.Close()
	before, err := in.Stat()
	if err != nil {
		return fmt.Errorf("reading image: %w", err)
	}
	if !before.Mode().IsRegular() || before.Size() > maxStateBytes {
		return fmt.Errorf("reading image: %d bytes of objects, where %d are the limit", before.Size(), maxStateBytes)
	}
	out, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("changing image: %w", err)
	}
	defer out.Close()
	defer func() {
		if removed := os.Remove(out.Name()); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("changing image: %w", removed))
		}
	}()
	if err := runAdopter(ctx, adopterParse, image, in, out); err != nil {
		return err
	}
	after, err := out.Stat()
	if err != nil {
		return fmt.Errorf("changing image: %w", err)
	}
	if after.Size() != before.Size() {
		return fmt.Errorf("changing image: %d bytes become %d", before.Size(), after.Size())
	}
	if err := os.Rename(out.Name(), path); err != nil {
		return fmt.Errorf("changing image: %w", err)
	}
	return nil
}

// runAdopter has an adopter do its work on two files, and waits for its end. In
// the directory dir it makes an empty one for the adopter to live in.
func runAdopter(ctx context.Context, work, dir string, in, out *os.File) (err error) {
	jail, err := os.MkdirTemp(dir, "jail")
	if err != nil {
		return fmt.Errorf("reading image: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(jail)) }()
	ctx, cancel := context.WithTimeout(ctx, adopterTime)
	defer cancel()
	words := &firstBytes{room: adopterWords}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{adopterName, adopterEnter, work, "--image-fd=3", "--result-fd=4"}
	// Nothing of the server's environment, which may hold keys. One processor is
	// enough; told so, Go does not open files of the cgroup to find out.
	cmd.Env = []string{"GOTRACEBACK=none", "GOMAXPROCS=1", "GODEBUG=containermaxprocs=0"}
	cmd.Dir = jail
	cmd.Stderr = words
	cmd.ExtraFiles = []*os.File{in, out}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("reading image: it took too long: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("reading image: %w: %q", err, words.line())
	}
	return nil
}

// firstBytes is a writer that holds the beginning of what is written to it and
// lets go of the rest.
type firstBytes struct {
	data []byte
	room int // bytes that it still takes
}

func (w *firstBytes) Write(p []byte) (int, error) {
	taken := min(len(p), w.room)
	w.data = append(w.data, p[:taken]...)
	w.room -= taken
	return len(p), nil
}

// line returns the first line.
func (w *firstBytes) line() []byte {
	line, _, _ := bytes.Cut(w.data, []byte("\n"))
	return line
}
