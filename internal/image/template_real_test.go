package image

import (
	"os"
	"testing"
)

// TestBuiltins builds the templates named in ATOLL_TEST_TEMPLATES for real, which takes minutes each.
func TestBuiltins(t *testing.T) {
	names := os.Getenv("ATOLL_TEST_TEMPLATES")
	if names == "" {
		t.Skip("ATOLL_TEST_TEMPLATES is not set")
	}
	ts, err := NewTemplates(TemplatesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := ts.Ensure(t.Context(), names, logProgress{t})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %d MB", b.Dir, b.SizeBytes>>20)
}
