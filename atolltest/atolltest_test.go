package atolltest_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/atoll-run/atoll/atolltest"
)

// environment posts an environment as a user of the package would, and returns
// the status and the body.
func environment(t *testing.T, url, key string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/environments", strings.NewReader(`{"name":"test"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-api-key", key)
	req.Header.Set("content-type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// TestStart: a server answers its key, keeps its data over a restart and a kill,
// and leaves no directory when its test has ended.
func TestStart(t *testing.T) {
	if err := atolltest.Available(); err != nil {
		if os.Getenv("ATOLL_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	parent := t.TempDir()
	t.Run("server", func(t *testing.T) {
		s := atolltest.Start(t, atolltest.Options{Parent: parent, Config: "http: {memory: 256MiB}"})
		if code, body := environment(t, s.URL, "wrong"); code != http.StatusUnauthorized {
			t.Errorf("a wrong key: %d %v", code, body)
		}
		if code, body := environment(t, s.URL, s.Key); code != http.StatusOK || body["name"] != "test" {
			t.Errorf("created: %d %v", code, body)
		}
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			s.Stop(signal)
			if s.Process() != nil {
				t.Error("a stopped server has a process")
			}
			s.Start()
			if code, body := environment(t, s.URL, s.Key); code != http.StatusConflict {
				t.Errorf("after %v: %d %v", signal, code, body)
			}
		}
		s.Close()
		s.Close()
		if _, err := os.Stat(s.Dir); err != nil {
			t.Errorf("the directory went before the test's end: %v", err)
		}
	})
	if left, err := filepath.Glob(filepath.Join(parent, "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q %v", left, err)
	}
}

// failing is a testing.TB whose fatal end can be looked at.
type failing struct {
	testing.TB
	words string
}

func (f *failing) Helper() {}
func (f *failing) Fatal(args ...any) {
	f.words = args[0].(error).Error()
	panic(f)
}

// TestNoProgram: without a program the test fails with what to do.
func TestNoProgram(t *testing.T) {
	f := &failing{TB: t}
	func() {
		defer func() { _ = recover() }()
		atolltest.Start(f, atolltest.Options{Binary: filepath.Join(t.TempDir(), "none")})
	}()
	if !strings.Contains(f.words, "ATOLL_BINARY") {
		t.Errorf("words: %q", f.words)
	}
}
