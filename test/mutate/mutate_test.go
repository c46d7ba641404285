package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inRoot makes the root of the repository the working directory.
func inRoot(t *testing.T) {
	t.Helper()
	t.Chdir(filepath.Join("..", ".."))
}

// TestNamedChangesFit: each named change fits the code in one place, gives
// another text, and has a test that is there. Whether the test finds it is for
// make mutate to say.
func TestNamedChangesFit(t *testing.T) {
	inRoot(t)
	seen := map[string]bool{}
	for _, m := range namedChanges() {
		if seen[m.name] {
			t.Errorf("two changes are named %q", m.name)
		}
		seen[m.name] = true
		c, err := m.locate()
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		changed, err := c.apply()
		if err != nil {
			t.Error(err)
		}
		if before, err := os.ReadFile(m.file); err != nil || string(before) == string(changed) {
			t.Errorf("%s changes nothing (%v)", m.name, err)
		}
		files, err := filepath.Glob(filepath.Join(m.dir(), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			found = found || err == nil && strings.Contains(string(text), "\nfunc "+m.test+"(")
		}
		if !found {
			t.Errorf("%s: %s has no %s", m.name, m.dir(), m.test)
		}
	}
}

// TestLocate: a change that fits nowhere, or in two places, is said to.
func TestLocate(t *testing.T) {
	t.Chdir(t.TempDir())
	source := "package x\n\nfunc a() {\n\tif b == nil {\n\t\tc()\n\t}\n\tc()\n}\n\nfunc (y) d() { c() }\n"
	if err := os.WriteFile("x.go", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		m    named
		want string // the file afterwards, or a part of the error
	}{
		{named{file: "x.go", within: "a", old: "if b == nil { c()", new: "{"}, "package x\n\nfunc a() {\n\t{\n\t}\n\tc()\n}\n\nfunc (y) d() { c() }\n"},
		{named{file: "x.go", within: "d", old: "c()"}, "package x\n\nfunc a() {\n\tif b == nil {\n\t\tc()\n\t}\n\tc()\n}\n\nfunc (y) d() {  }\n"},
		{named{file: "x.go", within: "a", old: "c()"}, "matches 2 places"},
		{named{file: "x.go", old: "e()"}, "matches 0 places"},
		{named{file: "x.go", within: "e", old: "c()"}, "no function e"},
		{named{file: "y.go", old: "c()"}, "no such file"},
	} {
		c, err := tt.m.locate()
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v: %v, want %q", tt.m, err, tt.want)
			}
			continue
		}
		if got, err := c.apply(); err != nil || string(got) != tt.want {
			t.Errorf("%+v: got %q, %v", tt.m, got, err)
		}
	}
}

// TestChanges: what is changed in a small file, in order.
func TestChanges(t *testing.T) {
	source := `package x

import "fmt"

const most = 16

func f(n int) (err error) {
	defer g()
	for n < most && ok() {
		n++
		if n == 1 {
			break
		}
		fmt.Println(n)
	}
	return err
}
`
	all, err := changesIn("x.go", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range all {
		got = append(got, c.String())
	}
	want := []string{
		"x.go:5: 16 → 16*1000",
		"x.go:8: defer g() → nothing",
		"x.go:9: && → ||",
		"x.go:9: < → <=",
		"x.go:10: n++ → nothing",
		"x.go:11: n == 1 → false && (n == 1)",
		"x.go:11: n == 1 → true || (n == 1)",
		"x.go:11: == → !=",
		"x.go:11: 1 → 2",
		"x.go:12: break → continue",
		"x.go:14: fmt.Println(n) → nothing",
		"x.go:16: err → nil",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestReadProfile: a line that any test came to counts, and so does one that no
// statement has.
func TestReadProfile(t *testing.T) {
	b := &baseline{lines: map[string]map[int]bool{}}
	err := b.readProfile("internal/x", "mode: set\nexample.com/m/internal/x/a.go:3.10,5.2 2 1\nexample.com/m/internal/x/a.go:5.2,6.3 1 0\n")
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[int]bool{2: true, 3: true, 5: true, 6: false, 7: true} {
		if got := b.reaches("internal/x/a.go", line); got != want {
			t.Errorf("line %d: %v, want %v", line, got, want)
		}
	}
	if err := b.readProfile("internal/x", "what is this\n"); err == nil {
		t.Error("accepted what is no profile")
	}
}
