package image

import (
	"os"
	"testing"
)

// needRoot skips tests that make file systems where that cannot be done; in CI it is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("ATOLL_CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("needs root")
}

// logProgress sends stages to the test's log.
type logProgress struct{ t *testing.T }

func (l logProgress) Stage(name string) { l.t.Log(name) }
func (l logProgress) Percent(float64)   {}
func (l logProgress) Log(string)        {}

// TestSlim bootstraps slim for real, in the shared cache: other tests of the repository use it too.
func TestSlim(t *testing.T) {
	needRoot(t)
	ts, err := NewTemplates(TemplatesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), "slim", logProgress{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %d MB %v", b.Dir, b.SizeBytes>>20, b.Env)
}
