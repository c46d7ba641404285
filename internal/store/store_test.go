package store

import (
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store/storetest"
)

// open opens a store that is closed with the test.
func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) control.Store { return open(t, t.TempDir()+"/atoll ?#%.db") })
}
