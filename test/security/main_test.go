// Package security runs the test matrix of the network boundary: every numbered
// attempt to get round it, from inside real gVisor sandboxes and again from a
// plain process that has every capability in a sandbox's network namespace.
//
// The tests run in a network namespace of their own, which plays the host. Its
// default route leads to a second one, which plays the internet: it answers on
// every address there is and sees every packet that leaves the host. So "nothing
// was dialled" is a fact about packets here, not about log lines.
//
// A case fails unless what it saw is exactly what it says it saw: each decision
// of the gateway, each request and connection that reached an upstream, each
// question that the resolver was asked.
package security

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

var (
	update = flag.Bool("update", false, "write the table of results into docs/security.md")
	only   = flag.String("only", "", "run the case with this number alone, of the tests that -run names")
)

const (
	// fullVariable runs what takes minutes by nature at its full length.
	fullVariable   = "ATOLL_SECURITY_FULL"
	innerVariable  = "ATOLL_SECURITY_INNER"
	proberVariable = "ATOLL_SECURITY_PROBER"
	serverVariable = "ATOLL_SECURITY_SERVER"
)

func full() bool { return os.Getenv(fullVariable) != "" }

// pick is the number to use in the usual run, and in the full one.
func pick(short, long int) int {
	if full() {
		return long
	}
	return short
}

func TestMain(m *testing.M) {
	gvisor.MaybeRun()
	if dir := os.Getenv(serverVariable); dir != "" {
		if fault := os.Getenv(serverVariable + "_FAULT"); fault != "" {
			beFaulty(dir, fault)
			os.Exit(0)
		}
		beServer(dir)
		os.Exit(1)
	}
	flag.Parse()
	code, err := 0, error(nil)
	switch {
	case os.Getenv(innerVariable) != "":
		// Cases wait more than they work.
		if err = errors.Join(flag.Set("test.parallel", "8"), beHost()); err == nil {
			code = m.Run()
			err = conclude(code == 0)
		}
	case os.Geteuid() == 0 && !testing.Short():
		code, err = runInside()
	case os.Getenv("ATOLL_CI") != "" && !testing.Short():
		err = fmt.Errorf("needs root")
	default:
		code = m.Run() // the tests that need no sandbox
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/security:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// runInside builds the prober and runs this program again in namespaces of its own.
func runInside() (int, error) {
	if *update {
		if err := runElsewhere(); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp("", "atoll-security-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	prober := filepath.Join(dir, "prober")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", prober, "./prober")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the prober: %w\n%s", err, out)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), innerVariable+"=1", proberVariable+"="+prober)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	if state := cmd.ProcessState; state != nil && state.Exited() {
		return state.ExitCode(), nil
	}
	return 0, err
}

// beHost makes the namespaces this process was started in fit to play a host.
func beHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return makeInternet()
}
