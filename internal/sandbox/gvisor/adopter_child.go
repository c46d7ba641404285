package gvisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The adopter is this program, executed under adopterName with a stage, its work,
// and its two descriptors. It is executed twice: a bit that forbids new privileges
// belongs to a thread, and an execution makes that thread the only one, so that
// all threads of the second stage have it.
const (
	adopterName  = "atoll-image-adopter"
	adopterEnter = "enter" // first stage: as root, gives up what an execution takes away
	adopterWork  = "work"  // second stage: gives up the rest, and works

	adopterParse  = "adopt"  // work: write the changed image
	adopterStatus = "status" // work, for tests: write what the kernel says of the process

	nobody = 65534 // user and group of the second stage
)

// isAdopter recognises the command lines that runAdopter makes.
func isAdopter(args []string) bool {
	return len(args) == 5 && args[0] == adopterName
}

// beAdopter is the whole life of an adopter. It returns what went wrong.
func beAdopter(args []string) error {
	switch args[1] {
	case adopterEnter:
		return enterAdopter(args)
	case adopterWork:
		in, out := os.NewFile(3, "image"), os.NewFile(4, "result")
		status, err := leavePrivileges(in)
		if err != nil {
			return err
		}
		if args[2] == adopterStatus {
			_, err := out.Write(status)
			return err
		}
		return copyAdopted(in, out)
	}
	return errors.New("no such stage")
}

// enterAdopter executes the second stage with no way back to privileges: it has
// those that it needs to give up the rest, and no execution adds any.
func enterAdopter(args []string) error {
	runtime.LockOSThread()
	closeStrays(args)
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return fmt.Errorf("offering itself when memory runs out: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &caps[0]); err != nil { // it takes the ambient ones too
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	for number := range uintptr(64) {
		switch number {
		case unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SYS_CHROOT:
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more of them; the end is checked
		}
		if err != nil {
			return fmt.Errorf("giving up capability %d: %w", number, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("refusing new privileges: %w", err)
	}
	next := append([]string{args[0], adopterWork}, args[2:]...)
	return fmt.Errorf("executing itself: %w", unix.Exec("/proc/self/exe", next, os.Environ()))
}

// leavePrivileges limits this process, moves it into the empty directory that it
// was started in, makes it nobody's, and returns what the kernel says of it. It
// fails unless all privileges are gone.
func leavePrivileges(in *os.File) ([]byte, error) {
	status, err := os.Open("/proc/self/status")
	if err != nil {
		return nil, err
	}
	defer status.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	for _, limit := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_AS, adopterAddresses},
		{unix.RLIMIT_DATA, adopterMemory},
		{unix.RLIMIT_CPU, adopterCPUSeconds},
		{unix.RLIMIT_FSIZE, uint64(info.Size())},
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, adopterFiles},
	} {
		if err := unix.Setrlimit(limit.resource, &unix.Rlimit{Cur: limit.value, Max: limit.value}); err != nil {
			return nil, fmt.Errorf("setting limit %d: %w", limit.resource, err)
		}
	}
	debug.SetMemoryLimit(adopterMemory / 4 * 3) // garbage goes before the limit is met
	if err := unix.Chroot("."); err != nil {
		return nil, fmt.Errorf("leaving the file system: %w", err)
	}
	// These three of package syscall do it for all threads.
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
		return nil, fmt.Errorf("becoming nobody: %w", err)
	}
	text, err := io.ReadAll(status)
	if err != nil {
		return nil, err
	}
	return text, checkPowerless(string(text))
}

// checkPowerless looks into a process's status for privileges.
func checkPowerless(status string) error {
	want := map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
	}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		wanted, ok := want[name]
		if value = strings.Join(strings.Fields(value), " "); ok && value != wanted {
			return fmt.Errorf("privileges are left: %s is %q", name, value)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		return fmt.Errorf("privileges are not known: %d lines of the process's status are missing", len(want))
	}
	return nil
}

// copyAdopted copies an image's objects and changes the copy, which nobody else
// writes to.
func copyAdopted(in, out *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if _, err := io.CopyN(out, in, info.Size()); err != nil {
		return fmt.Errorf("copying: %w", err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return adoptTasks(out)
}
