package store

import (
	"context"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store/storetest"
)

// TestPlans asks SQLite how it would run every statement that the suite made
// the store prepare: none may read a whole table or sort by hand.
func TestPlans(t *testing.T) {
	var stores []*Store
	t.Run("suite", func(t *testing.T) {
		path := t.TempDir()
		storetest.Run(t, func(t *testing.T) control.Store {
			// Opened on the parent's context, and closed by it: they are read below.
			s, err := Open(context.Background(), Config{Path: path + "/" + strings.ReplaceAll(t.Name(), "/", "_")})
			if err != nil {
				t.Fatal(err)
			}
			stores = append(stores, s)
			return s
		})
	})
	// The few workspaces are listed whole.
	const exempt = "FROM workspaces"
	seen := map[string]bool{}
	for _, s := range stores {
		for _, made := range []map[string]bool{texts(s.read), texts(s.writes.tx)} {
			for query := range made {
				if verb, _, _ := strings.Cut(query, " "); seen[query] || strings.Contains(query, exempt) ||
					(verb != "SELECT" && verb != "UPDATE" && verb != "DELETE") {
					continue
				}
				seen[query] = true
				plan := explain(t, s, query)
				if strings.Contains(plan, "SCAN") || strings.Contains(plan, "TEMP B-TREE") {
					t.Errorf("%s\n%s", query, plan)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d statements were looked at: the suite no longer reaches them", len(seen))
	}
	t.Logf("%d statements", len(seen))
}

func texts(s *statements) map[string]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[string]bool{}
	for query := range s.made {
		out[query] = true
	}
	return out
}

func explain(t *testing.T, s *Store, query string) string {
	t.Helper()
	args := make([]any, strings.Count(query, "$"))
	for i := range args {
		args[i] = 1
	}
	lines, err := many(t.Context(), s.read, func(row scanner) (detail string, err error) {
		var skip int
		err = row.Scan(&skip, &skip, &skip, &detail)
		return detail, err
	}, "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return strings.Join(lines, "\n")
}
