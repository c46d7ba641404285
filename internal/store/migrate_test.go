package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/control"
)

var update = flag.Bool("update", false, "rewrite the golden schema")

func TestMigrationsHaveNoGaps(t *testing.T) {
	names, err := fs.Glob(embedded(), "*")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if prefix := fmt.Sprintf("%04d_", i+1); !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, ".sql") {
			t.Errorf("migration %d is named %s", i+1, name)
		}
	}
}

// schema is the database's own account of itself.
func schema(t *testing.T, s *Store) string {
	t.Helper()
	all, err := many(t.Context(), s.read, func(row scanner) (text string, err error) {
		err = row.Scan(&text)
		return text, err
	}, `SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name`)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n") + "\n"
}

func TestGoldenSchema(t *testing.T) {
	const golden = "testdata/schema.sql"
	got := schema(t, open(t, t.TempDir()+"/db"))
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the schema changed: add a migration, then run with -update (-want +got)\n%s", diff)
	}
}

func TestStrictTables(t *testing.T) {
	s := open(t, t.TempDir()+"/db")
	loose, err := many(t.Context(), s.read, func(row scanner) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	}, `SELECT name FROM pragma_table_list WHERE schema = 'main' AND strict = 0 AND name NOT LIKE 'sqlite_%'`)
	if err != nil || len(loose) > 0 {
		t.Errorf("tables that are not STRICT: %v, error %v", loose, err)
	}
}

func TestReopen(t *testing.T) {
	path := t.TempDir() + "/db"
	s := open(t, path)
	before := schema(t, s)
	seedWorkspace(t, s)
	if err := s.CreateEnvironment(t.Context(), record(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateEnvironment(t.Context(), record(2)); !errors.Is(err, ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	again := open(t, path)
	if diff := cmp.Diff(before, schema(t, again)); diff != "" {
		t.Error(diff)
	}
	if _, err := again.Environment(t.Context(), "w", record(1).ID); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, error %v", info.Mode(), err)
	}
}

// migrated opens path and runs only the migrations of dir on it.
func migrated(t *testing.T, path string, dir fs.FS) error {
	t.Helper()
	db, err := openPool(path, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return migrate(t.Context(), conn, dir)
}

func TestMigrateSteps(t *testing.T) {
	path := t.TempDir() + "/db"
	one := fstest.MapFS{"0001_a.sql": {Data: []byte("CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (1);")}}
	two := fstest.MapFS{"0001_a.sql": one["0001_a.sql"], "0002_b.sql": {Data: []byte("ALTER TABLE a ADD COLUMN y TEXT; INSERT INTO a VALUES (2, 'b');")}}
	broken := fstest.MapFS{"0001_a.sql": one["0001_a.sql"], "0002_b.sql": {Data: []byte("INSERT INTO a VALUES (9); CREATE TABLE nonsense (;")}}
	if err := migrated(t, path, one); err != nil {
		t.Fatal(err)
	}
	if err := migrated(t, path, broken); err == nil || !strings.Contains(err.Error(), "0002_b.sql") {
		t.Errorf("broken migration: %v", err)
	}
	for range 2 {
		if err := migrated(t, path, two); err != nil {
			t.Fatal(err)
		}
	}
	if err := migrated(t, path, one); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "0002_b.sql") {
		t.Errorf("newer database: %v", err)
	}
	db, err := openPool(path, false, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var rows int
	if err := db.QueryRowContext(t.Context(), `SELECT sum(x) FROM a`).Scan(&rows); err != nil || rows != 3 {
		t.Errorf("rows sum to %d, error %v: the broken migration left something or the good one is missing", rows, err)
	}
}

func TestNewerDatabaseRefused(t *testing.T) {
	path := t.TempDir() + "/db"
	s := open(t, path)
	if err := s.writes.write(t.Context(), func(tx *statements) error {
		_, err := tx.exec(context.Background(), `INSERT INTO migrations VALUES ('9999_future.sql', 1)`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Path: path}); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "9999_future.sql") {
		t.Errorf("error = %v", err)
	}
}

func seedWorkspace(t testing.TB, s *Store) {
	t.Helper()
	if err := s.CreateWorkspace(context.Background(), control.Workspace{ID: "w", Name: "w", CreatedAt: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
}

// record is environment n of workspace w, with a document of the usual size.
func record(n int) control.EnvironmentRecord {
	at := time.Unix(1e9, int64(n)*1000).UTC()
	return control.EnvironmentRecord{ID: fmt.Sprintf("env_%08d", n), Workspace: "w", Name: fmt.Sprintf("environment %d", n),
		Document:  []byte(`{"description":"","config":{"type":"cloud","networking":{"type":"limited","allowed_hosts":["api.example.com"],"allow_package_managers":true},"packages":{"type":"packages","pip":["pandas","numpy"],"npm":["express"]}},"metadata":{"team":"data"}}`),
		CreatedAt: at, UpdatedAt: at}
}
