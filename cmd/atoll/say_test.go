package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/store"
)

// hostile is a name that clears the screen, sets the title, turns the order of
// letters round, and goes on in a line of its own.
const hostile = "a\x1b[2J\x1b]0;owned\x07\u202e\u009b31m\nrevoked\tb"

// checkSafe looks for what moves a terminal.
func checkSafe(t *testing.T, what, out string) {
	t.Helper()
	for _, r := range out {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%s prints %q: %q", what, r, out)
			return
		}
	}
	if strings.Contains(out, "\nrevoked") {
		t.Errorf("%s prints a line of the name's: %q", what, out)
	}
}

// A key's name comes from whoever made it.
func TestKeyNamesArePrintable(t *testing.T) {
	// Not parallel: as TestKeys.
	dir := t.TempDir()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, databaseFile)})
	if err != nil {
		t.Fatal(err)
	}
	service := control.New(control.Config{Store: db})
	if _, err := service.EnsureDefault(t.Context(), "", func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// The database may be older than any rule for names.
	if _, err := httpapi.AdminMake(t.Context(), service, httpapi.AdminCreate{Workspace: "default", Name: hostile}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := command(t, map[string]string{"ATOLL_DATA": dir}, "", "key", "list")
	if code != 0 || !strings.Contains(out, "owned") {
		t.Fatalf("exit %d, %s%s", code, out, stderr)
	}
	checkSafe(t, "key list", out)
}

// What a server says, of builds, decisions and errors, is text from outside too.
func TestRepliesArePrintable(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(hostile)
	if err != nil {
		t.Fatal(err)
	}
	replies := map[string]string{
		"/atoll/v1/environments/env_x/build": `{"environment_id":` + string(text) + `,"status":"failed","template":` + string(text) + `,"layers":[{"manager":` + string(text) + `,"state":` + string(text) +
			`,"packages":[{"name":` + string(text) + `,"version":` + string(text) + `,"requested":true}]}],"error":{"message":"no","tail":"x\u001b[2J\u202e"}}`,
		"/atoll/v1/environments/env_x/build/log": "2026 pip: \x1b[2J\x1b]0;owned\x07\u202e\u009b31m\n",
		"/atoll/v1/sessions/sesn_x/egress":       `{"data":[{"id":"egr_1","host":` + string(text) + `,"claimed_host":` + string(text) + `,"rule":` + string(text) + `}],"has_more":false}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body, ok := replies[r.URL.Path]; ok {
			_, _ = w.Write([]byte(body))
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"error":{"type":"not_found_error","message":"x\u001b[2J\u202e"}}`))
	}))
	defer server.Close()
	env := map[string]string{"ATOLL_URL": server.URL, "ATOLL_API_KEY": "k"}
	for _, args := range [][]string{{"build", "env_x"}, {"build", "--log", "env_x"}, {"egress", "sesn_x"}, {"egress", "--json", "sesn_x"}, {"exec", "sesn_none", "true"}} {
		_, out, stderr := command(t, env, "", args...)
		if out+stderr == "" {
			t.Errorf("%s says nothing", args[0])
		}
		checkSafe(t, strings.Join(args, " "), out+stderr)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	view := newBuildView(&out, true)
	c := &client{}
	c.base, c.http = mustURL(t, server.URL), server.Client()
	view.hear(ctx, c, "/atoll/v1/environments/env_x/build/log")
	if len(view.said) == 0 {
		t.Error("the view heard nothing")
	}
	for _, line := range view.said {
		checkSafe(t, "a build's view", fit(line, 80))
	}
}

// JSON keeps every character, in a form that no terminal obeys.
func TestSayJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	want := map[string]string{"name": hostile + "\U000e0001 é 世界 \x7f"}
	if err := sayJSON(&out, want, ""); err != nil {
		t.Fatal(err)
	}
	checkSafe(t, "JSON", out.String())
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["name"] != want["name"] {
		t.Errorf("%v, got %q of %s", err, got, out.String())
	}
	out.Reset()
	if err := say(&out, "%s %v %d %6.1f %t %s %s\n", hostile, errors.New(hostile), uint16(3), 2.5, true, time.Second, struct{ n string }{hostile}); err != nil {
		t.Fatal(err)
	}
	checkSafe(t, "say", out.String())
	if text := out.String(); !strings.Contains(text, " 3    2.5 true 1s ") {
		t.Errorf("say writes %q", text)
	}
}

// TestOutputIsSafe parses the commands: what they print goes through say.go.
func TestOutputIsSafe(t *testing.T) {
	t.Parallel()
	// The escapes of a build's view are its own; its lines are made safe by fit.
	own := map[string]bool{"say.go": true, "build_view.go": true}
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) < 20 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		if own[name] || strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			p, ok := s.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch q := p.Name + "." + s.Sel.Name; q {
			case "fmt.Fprint", "fmt.Fprintf", "fmt.Fprintln", "fmt.Print", "fmt.Printf", "fmt.Println", "io.WriteString", "io.Copy", "json.NewEncoder", "os.Stdout", "os.Stderr":
				if name == "main.go" && p.Name == "os" { // run gets them here
					return true
				}
				t.Errorf("%s: %s; print with say, sayText or sayJSON", files.Position(n.Pos()), q)
			}
			return true
		})
	}
}

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
