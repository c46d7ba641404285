package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor"
)

func TestMain(m *testing.M) {
	gvisor.MaybeRun()
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func TestCheckVerdicts(t *testing.T) {
	t.Parallel()
	answer := func(found string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return found, err }
	}
	for _, test := range []struct {
		check   Check
		verdict verdict
		words   string
	}{
		{Check{Required: true, Run: answer("fine", nil)}, passed, "fine"},
		{Check{Required: true, Run: answer("", errors.New("broken"))}, failed, "broken"},
		{Check{Run: answer("", errors.New("broken"))}, warned, "broken"},
		{Check{Required: true, Run: answer("", fmt.Errorf("no template: %w", errSkip))}, skipped, "no template"},
	} {
		v, words := test.check.perform(t.Context())
		if v != test.verdict || words != test.words {
			t.Errorf("got %s %q, want %s %q", v, words, test.verdict, test.words)
		}
	}
}

// TestChecksAreWhole holds the list itself: each has words, and a failure of
// each says what to do.
func TestChecksAreWhole(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, c := range checks(valid(t)) {
		if c.Name == "" || c.Remedy == "" || c.Run == nil || names[c.Name] {
			t.Errorf("check %q is not whole, or there twice", c.Name)
		}
		names[c.Name] = true
	}
}

func TestDoctorHere(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, c := range checks(valid(t)) {
		if c.Slow {
			continue // the network and the templates are not this test's
		}
		if v, words := c.perform(t.Context()); v == failed {
			t.Errorf("%s: %s (%s)", c.Name, words, c.Remedy)
		}
	}
}

func TestPreflightNamesWhatToDo(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root has everything that preflight asks for")
	}
	err := preflight(t.Context(), valid(t))
	if err == nil || !strings.Contains(err.Error(), "run it as root") {
		t.Errorf("got %v", err)
	}
}

func TestCgroupVerdict(t *testing.T) {
	t.Parallel()
	v1 := map[string]string{"memory": "/m", "cpu": "/c", "pids": "/p"}
	controllers := func(text string) func(string) ([]byte, error) {
		return func(string) ([]byte, error) { return []byte(text), nil }
	}
	for name, test := range map[string]struct {
		v1   map[string]string
		v2   string
		have string
		want string
	}{
		"v2":                 {nil, "/sys/fs/cgroup", "cpu io memory pids\n", "v2 with memory, cpu and pids"},
		"v1":                 {v1, "", "", "v1 with memory, cpu and pids"},
		"hybrid":             {v1, "/sys/fs/cgroup/unified", "", "hybrid (v1 controllers, v2 beside them) with memory, cpu and pids"},
		"v2 without a needs": {nil, "/sys/fs/cgroup", "cpu io\n", "no controller for memory, pids"},
		"nothing":            {nil, "", "", "no controller for memory, cpu, pids"},
	} {
		got, err := cgroupVerdict(test.v1, test.v2, controllers(test.have))
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestFindURLs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		manager, text string
		want          []string
	}{
		{"pip", "global.cert='/etc/x'\nglobal.proxy='http://proxy.example.com:3128'\nglobal.index-url='https://user:secret@pip.example.com/simple?x=1'\n", []string{"https://pip.example.com/simple"}},
		{"npm", "https://npm.example.com/\n", []string{"https://npm.example.com/"}},
		{"go", "https://go.example.com|https://other.example.com,direct\n", []string{"https://go.example.com", "https://other.example.com"}},
		{"go", "off\n", nil},
		{"apt", "file:/media/cdrom\nhttp://deb.example.com/debian\n", []string{"http://deb.example.com/debian"}},
		{"gem", "*** CURRENT SOURCES ***\n\nhttps://gem.example.com/\n", []string{"https://gem.example.com/"}},
	} {
		if diff := cmp.Diff(test.want, findURLs(test.text, test.manager)); diff != "" {
			t.Errorf("%s:\n%s", test.manager, diff)
		}
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got := nearest(dir + "/a/b/c"); got != dir {
		t.Errorf("got %s, want %s", got, dir)
	}
	if !slices.Contains([]string{"/", "/var", "/var/lib"}, nearest("/var/lib/no-such-directory")) {
		t.Errorf("got %s", nearest("/var/lib/no-such-directory"))
	}
}

// TestNamespacesStayOnTheirThreads: the process's own namespace is that of its
// main thread, which gVisor's library gives back to threads that it had moved.
func TestNamespacesStayOnTheirThreads(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if err := inNetNS(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		after, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if after != before {
			t.Fatalf("the main thread was left in %s, want %s", after, before)
		}
	}
}

// TestEgressSettings: what opens something is said, and what is risky warns.
func TestEgressSettings(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ yaml, found, risk string }{
		{"", "no exemption, no port opened", ""},
		{"egress: {exempt: [{host: pip.example.com, cidr: 10.1.2.0/24}]}", "pip.example.com at 10.1.2.0/24", ""},
		{"egress: {open_ports: [{host: git.example.com, ports: [22]}]}", "git.example.com on ports [22], unchecked", ""},
		{"egress: {exempt: [{host: a.example.com, cidr: 127.0.0.1/32}]}", "", "a.example.com at 127.0.0.1/32: services of this machine"},
		{"egress: {exempt: [{host: a.example.com, cidr: 169.254.169.254/32}]}", "", "metadata"},
		{"egress: {ech: allow}", "", "encrypted ClientHellos"},
	} {
		cfg := valid(t)
		if err := errors.Join(cfg.parse("x", []byte(test.yaml)), cfg.validate()); err != nil {
			t.Fatal(err)
		}
		found, err := checkEgressSettings(t.Context(), cfg)
		if found != test.found || (err == nil) != (test.risk == "") || err != nil && !strings.Contains(err.Error(), test.risk) {
			t.Errorf("%q: %q %v", test.yaml, found, err)
		}
	}
	cfg := valid(t)
	cfg.Egress.DenyCIDRs, cfg.Egress.BlockPorts = []string{"203.0.113.0/24"}, []int{6667}
	found, err := checkSafetyList(cfg)
	for _, want := range []string{"169.254.0.0/16", "168.63.129.16/32", "TCP port 25", "203.0.113.0/24", "6667", "this host: "} {
		if err != nil || !strings.Contains(found, want) {
			t.Errorf("%q is not in %q (%v)", want, found, err)
		}
	}
}
