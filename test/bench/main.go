// Command bench measures Atoll beside raw runsc, runc and podman on one machine
// in one run and prints ratios. It needs root and starts everything itself: the
// server on a throwaway data directory, runsc built from the pinned module. A
// peer that is not installed is named as not measured, never left out.
//
// Its egress part compares the gateway with the same path without it, and one
// sandbox beside a flooding one with the same at rest; docs/operations.md has
// its figures.
//
// The clock is on the client's side; fsync is on; the page cache is warm. A
// failed run counts as a failure and is printed.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// sample is the outcome of one measurement.
type sample struct {
	Name     string    `json:"name"`
	Millis   []float64 `json:"ms,omitempty"`
	PerSec   float64   `json:"per_second,omitempty"`
	Failures int       `json:"failures"`
	Note     string    `json:"note,omitempty"`
	// Against is the row that the ratio is with, if it is not the group's first.
	Against *sample `json:"-"`
}

func (s *sample) add(d time.Duration, err error) {
	if err != nil {
		s.Failures++
		s.Note = err.Error()
		return
	}
	s.Millis = append(s.Millis, float64(d.Microseconds())/1000)
}

// quantile of the measured times in milliseconds.
func (s *sample) quantile(q float64) float64 {
	if len(s.Millis) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(s.Millis))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

// group is a table whose first row is ours and whose ratios are against it.
type group struct {
	Title string    `json:"title"`
	Rows  []*sample `json:"rows"`
	// Slower turns the ratio round: how many times as long as the first row.
	Slower bool `json:"-"`
	// Unit of the times, if it is not ms.
	Unit string `json:"unit,omitempty"`
}

func main() {
	quick := flag.Bool("quick", false, "a tenth of the runs")
	out := flag.String("json", "", "also write the raw data to this file")
	only := flag.String("only", "", "run these parts, with commas between: "+strings.Join(parts(), ","))
	asProbe := flag.Bool("probe", false, "be a client of the egress part")
	flag.Parse()
	do := func() error { return run(*quick, *only, *out) }
	if *asProbe {
		do = func() error { return runProbe(flag.Args()) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parts are what there is to measure, in order.
func parts() []string {
	return []string{"starts", "execs", "wakes", "builds", "api", "agents", "egress"}
}

func run(quick bool, only, out string) (err error) {
	if os.Getuid() != 0 {
		return fmt.Errorf("needs root (sandboxes, mounts and network namespaces)")
	}
	wanted := parts()
	if only != "" {
		wanted = strings.Split(only, ",")
	}
	dir, err := os.MkdirTemp("", "atoll-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	n := 60
	if quick {
		n = 8
	}
	b := &bench{dir: dir, n: n, quick: quick, upstreamAt: loopback()}
	steps := map[string]func() ([]group, error){"starts": b.starts, "execs": b.execs, "wakes": b.wakes, "builds": b.builds, "api": b.api, "agents": b.agents, "egress": b.egress}
	for _, name := range wanted {
		if steps[name] == nil {
			return fmt.Errorf("no part is called %q; there are %s", name, strings.Join(parts(), ", "))
		}
	}
	defer b.close()
	if err := b.prepare(); err != nil {
		return err
	}
	machine()
	var groups []group
	for _, name := range wanted {
		gs, err := steps[name]()
		if err != nil {
			return err
		}
		for _, g := range gs {
			g.print()
		}
		groups = append(groups, gs...)
	}
	if out == "" {
		return nil
	}
	raw, err := json.MarshalIndent(groups, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, raw, 0o644)
}

// machine prints what the figures were measured on.
func machine() {
	var u syscall.Utsname
	_ = syscall.Uname(&u)
	release := make([]byte, 0, len(u.Release))
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	fmt.Printf("%d CPUs, %s/%s, Linux %s, %s. No network path: client, server and peers share the machine.\n",
		runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, release, time.Now().Format("2006-01-02"))
}

func (g group) print() {
	fmt.Printf("\n%s\n", g.Title)
	if len(g.Rows) > 0 && g.Rows[0].PerSec > 0 {
		for _, r := range g.Rows {
			fmt.Printf("  %-44s %9.0f /s   p99 %7.2f ms   failures %d\n", r.Name, r.PerSec, r.quantile(.99), r.Failures)
		}
		return
	}
	ratio := "ours/it"
	if g.Slower {
		ratio = "it/first"
	}
	unit := cmp.Or(g.Unit, "ms")
	fmt.Printf("  %-44s %4s %9s %9s %9s %8s\n", "", "n", "min "+unit, "p50 "+unit, "p99 "+unit, ratio)
	for _, r := range g.Rows {
		if len(r.Millis) == 0 {
			fmt.Printf("  %-44s not measured: %s\n", r.Name, strings.TrimSpace(r.Note))
			continue
		}
		against := g.Rows[0]
		if r.Against != nil {
			against = r.Against
		}
		times := against.quantile(.5) / r.quantile(.5)
		if g.Slower {
			times = 1 / times
		}
		fmt.Printf("  %-44s %4d %9.2f %9.2f %9.2f %8.2f", r.Name, len(r.Millis), r.quantile(0), r.quantile(.5), r.quantile(.99), times)
		if r.Failures > 0 {
			fmt.Printf("   %d failed: %s", r.Failures, strings.TrimSpace(r.Note))
		}
		fmt.Println()
	}
}

// root is the top of the checkout.
func root() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}
