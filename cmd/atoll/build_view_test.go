package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/atoll-run/atoll/api"
)

// TestBuildView draws a build as it goes on: what a manager says is cut to the
// terminal and has no control codes, and the log is read once.
func TestBuildView(t *testing.T) {
	log := "2026-01-01T00:00:00.000Z template base: unpacking\n2026-01-01T00:00:01.000Z apt: Get:1 figlet\n2026-01-01T00:00:02.000Z apt: Unpacking \x1b[2Jfiglet: " + strings.Repeat("x", 200) + "\n"
	var offsets []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offsets = append(offsets, r.URL.Query().Get("offset"))
		if len(offsets) == 1 {
			_, _ = w.Write([]byte(log))
		}
	}))
	defer server.Close()
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{base: base, http: server.Client()}
	var out strings.Builder
	v := newBuildView(&out, true)
	now := v.start
	v.now = func() time.Time { return now }
	step := func(b api.Build) string {
		t.Helper()
		v.hear(t.Context(), c, "/log")
		out.Reset()
		v.show(b)
		now = now.Add(2 * time.Second)
		return out.String()
	}
	b := api.Build{Status: api.BuildBuilding, Template: "base"}
	if got, want := step(b), "\rbuilding on base  0s  unpacking\x1b[K\n\x1b[J"; got != want {
		t.Errorf("the template: %q, want %q", got, want)
	}
	b.BaseDigest, b.Layers = "x", []api.BuildLayer{{Manager: "apt", State: api.BuildBuilding}, {Manager: "pip", State: api.BuildQueued}}
	line := ("  apt   building     0.0s  Unpacking [2Jfiglet: " + strings.Repeat("x", 79))[:79] + "\x1b[K\n"
	if got := step(b); got != "\x1b[1A\rbuilding on base  2s\x1b[K\n\r"+line+"\r  pip   queued   \x1b[K\n\x1b[J" {
		t.Errorf("apt at work: %q", got)
	}
	b.Layers = []api.BuildLayer{{Manager: "apt", State: api.BuildReady, DurationMS: 3200, SizeBytes: 2 << 20, Packages: make([]api.BuildPackage, 3)},
		{Manager: "pip", State: api.BuildReady, Hit: true, SizeBytes: 1 << 10, Packages: make([]api.BuildPackage, 1)}}
	if got, want := step(b), "\x1b[3A\rbuilding on base  4s\x1b[K\n\r  apt   ready        3.2s  3 packages, 2.0 MiB\x1b[K\n\r  pip   cached    1 packages, 1 KiB\x1b[K\n\x1b[J"; got != want {
		t.Errorf("ready: %q, want %q", got, want)
	}
	out.Reset()
	v.end()
	if got := out.String(); got != "\x1b[3A\r\x1b[J" {
		t.Errorf("the end: %q", got)
	}
	if strings.Join(offsets, " ") != "0 3 3" {
		t.Errorf("the log was asked for from %v", offsets)
	}
}
