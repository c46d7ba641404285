package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/atoll-run/atoll/internal/control"
	"github.com/atoll-run/atoll/internal/store"
)

// command runs the command line as main does, with an environment of its own.
func command(t *testing.T, env map[string]string, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	err := run(t.Context(), args, func(name string) string { return env[name] }, strings.NewReader(stdin), &out, &errs)
	return exitCode(err, &errs), out.String(), errs.String()
}

// TestCommandLine is a script: arguments, exit code, and what is said where.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("limit: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"ATOLL_DATA": filepath.Join(dir, "data"), "ATOLL_CACHE": filepath.Join(dir, "cache"), "ATOLL_URL": "http://127.0.0.1:1"}
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"version"}, 0, "atoll ", ""},
		{[]string{"--help"}, 0, "Commands:", ""},
		{[]string{"exec", "--help"}, 0, "124 when --timeout", ""},
		{[]string{}, 2, "", "expected one of"},
		{[]string{"nonsense"}, 2, "", "nonsense"},
		{[]string{"serve", "--nonsense"}, 2, "", "--nonsense"},
		{[]string{"serve", "--listen", "8400", "--log-level", "loud"}, 1, "", "log-level"},
		{[]string{"doctor", "--config", bad}, 1, "", "limit"},
		{[]string{"doctor", "--config", "/does/not/exist"}, 1, "", "reading the configuration"},
		{[]string{"template", "list"}, 0, "slim", ""},
		{[]string{"template", "show", "slim"}, 0, "atoll template build slim", ""},
		{[]string{"template", "show", "nonsense"}, 1, "", "no template"},
		{[]string{"key", "list"}, 1, "", "no server has run in"},
		{[]string{"cache", "drop", "0123456789ab"}, 1, "", "no server has run in"},
		{[]string{"cache", "drop"}, 2, "", "key"},
		{[]string{"cache", "renew"}, 1, "", "no server has run in"},
		{[]string{"exec", "sesn_x", "true"}, 125, "", "no API key"},
		{[]string{"exec", "--key", "k", "sesn_x", "true"}, 125, "", "asking the server at http://127.0.0.1:1"},
		{[]string{"exec", "--key", "k", "--url", "ftp://x", "sesn_x", "true"}, 125, "", "not an http or https URL"},
		{[]string{"exec", "--key", "k", "--env", "novalue", "sesn_x", "true"}, 125, "", "NAME=VALUE"},
		{[]string{"shell", "--key", "k", "sesn_x"}, 125, "", "needs a terminal"},
	} {
		code, stdout, stderr := command(t, env, "", test.args...)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("atoll %s: exit %d, want %d\nstdout: %s\nstderr: %s", strings.Join(test.args, " "), code, test.code, stdout, stderr)
		}
	}
}

// TestExec passes a command and its input to a server, and its output back.
func TestExec(t *testing.T) {
	t.Parallel()
	const end = `{"type":"exit","code":7,"signal":null,"timed_out":false,"duration_ms":3}`
	var request, input string
	frames := []string{`{"type":"stdout","data":"out"}`, `{"type":"later"}`, `{"type":"stderr","data":"/w==","encoding":"base64"}`, end}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-api-key") != "k" || r.URL.Path != "/atoll/v1/sessions/sesn_x/exec" {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"type":"error","error":{"type":"not_found_error","message":"Session sesn_y not found."},"request_id":"req_1"}`))
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(inputFrame)
		_, text, err := conn.Read(r.Context())
		request, input = string(text), ""
		for err == nil {
			var piece []byte
			if _, piece, err = conn.Read(r.Context()); len(piece) == 0 {
				break
			}
			input += string(piece)
			if err = conn.Write(r.Context(), websocket.MessageText, []byte(`{"type":"stdin"}`)); err != nil {
				break
			}
		}
		if err != nil {
			t.Error(err)
		}
		for _, frame := range frames {
			if err := conn.Write(r.Context(), websocket.MessageText, []byte(frame)); err != nil {
				t.Error(err)
			}
		}
	}))
	defer server.Close()
	env := map[string]string{"ATOLL_URL": server.URL, "ATOLL_API_KEY": "k"}
	sent := strings.Repeat("in\xff", 1<<20) // more than the window
	code, stdout, stderr := command(t, env, sent, "exec", "-e", "A=b=c", "--cwd", "/tmp", "--timeout", "2s", "sesn_x", "--", "ls", "--all")
	if code != 7 || stdout != "out" || stderr != "\xff" {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if want := `{"command":["ls","--all"],"cwd":"/tmp","env":{"A":"b=c"},"timeout_ms":2000}`; request != want || input != sent {
		t.Errorf("got  %s\nwant %s\nand %d bytes of input of %d", request, want, len(input), len(sent))
	}
	code, _, stderr = command(t, env, "", "exec", "sesn_y", "true")
	if code != codeOwn || stderr != "atoll: Session sesn_y not found.\n" {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	for frame, want := range map[string]struct {
		code  int
		words string
	}{
		`{"type":"exit","code":137,"signal":"SIGKILL","timed_out":true,"duration_ms":3}`:                       {codeTimedOut, ""},
		`{"type":"stdout","data":"half"}`:                                                                      {codeOwn, "ended before the command"},
		`{"type":"error","error":{"type":"not_found_error","message":"No such session."},"request_id":"r"}`:    {codeOwn, "atoll: No such session.\n"},
		`{"type":"error","error":{"type":"api_error","message":"Internal server error"},"request_id":"req_1"}`: {codeOwn, "(request req_1)"},
		`{"type":"error"}`: {codeOwn, "refused"},
		`nonsense`:         {codeOwn, "reading the command's output"},
	} {
		frames = []string{frame}
		if code, _, stderr := command(t, env, "", "exec", "sesn_x", "true"); code != want.code || !strings.Contains(stderr, want.words) {
			t.Errorf("%s: exit %d, stderr %q", frame, code, stderr)
		}
	}
}

// TestKeys manages keys without a server and then through a running one's
// socket: the same commands, the same database.
func TestKeys(t *testing.T) {
	// Not parallel: a child that another test starts holds the database's lock until it has executed its program.
	dir, err := os.MkdirTemp("", "atoll-k-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	open := func() (*store.Store, *control.Service) {
		db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, databaseFile)})
		if err != nil {
			t.Fatal(err)
		}
		return db, control.New(control.Config{Store: db})
	}
	db, service := open()
	if _, err := service.EnsureDefault(t.Context(), "", func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"ATOLL_DATA": dir}
	if code, _, stderr := command(t, env, "", "key", "list"); code != 1 || !strings.Contains(stderr, "does not answer") {
		t.Errorf("with a locked database and no socket: exit %d, %s", code, stderr)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	secrets := []string{manageKeys(t, env), manageWorkspaces(t, env, "first")}
	db, service = open()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveAdmin(ctx, dir, service, nil, nil) }()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if info, err := os.Stat(filepath.Join(dir, adminSocketFile)); err == nil {
			if info.Mode().Perm() != 0o600 {
				t.Errorf("the socket has mode %v", info.Mode())
			}
			break
		} else if time.Now().After(deadline) {
			t.Fatal("no socket")
		}
		<-time.After(time.Millisecond)
	}
	secrets = append(secrets, manageKeys(t, env), manageWorkspaces(t, env, "second"))
	for _, secret := range secrets {
		if _, err := service.Authenticate(t.Context(), secret); err == nil {
			t.Error("a key that was revoked, or whose workspace is archived, is accepted")
		}
	}
	stop()
	if err := errors.Join(<-ended, db.Close()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, adminSocketFile)); err == nil {
		t.Error("the socket stayed")
	}
}

// manageWorkspaces makes a workspace with a key, archives it, and answers the
// key's secret, which opens nothing any more.
func manageWorkspaces(t *testing.T, env map[string]string, name string) string {
	t.Helper()
	code, id, stderr := command(t, env, "", "workspace", "create", name)
	id = strings.TrimSpace(id)
	if code != 0 || !strings.HasPrefix(id, "wrkspc_01") {
		t.Fatalf("create: exit %d, %q, %s", code, id, stderr)
	}
	code, secret, stderr := command(t, env, "", "key", "create", "--workspace", name, "for a test")
	if code != 0 {
		t.Fatalf("a key of it: exit %d, %s", code, stderr)
	}
	row := func() string {
		_, out, _ := command(t, env, "", "workspace", "list")
		return regexp.MustCompile(`(?m)^` + id + ` .*$`).FindString(out)
	}
	if code, _, stderr := command(t, env, "", "workspace", "update", "--max-sessions", "3", name); code != 0 || !strings.Contains(row(), " at most 3 ") {
		t.Errorf("update: exit %d, %s, %q", code, stderr, row())
	}
	if !strings.HasSuffix(strings.TrimSpace(row()), " -") || !strings.Contains(row(), " "+name+" ") {
		t.Errorf("list: %q", row())
	}
	for _, refused := range []struct{ words, args string }{
		{"already exists", "create " + name}, {"should not begin with", "create wrkspc_x"}, {"at least 1 character", "create "}, {"max_sessions", "create --max-sessions=-1 bad"},
		{"max_sessions", "update --max-sessions=-1 " + name}, {"no workspace", "update --max-sessions=1 nobody's"},
		{"no workspace", "archive nobody's"}, {"default workspace", "archive default"},
	} {
		if code, _, stderr := command(t, env, "", append([]string{"workspace"}, strings.Split(refused.args, " ")...)...); code != 1 || !strings.Contains(stderr, refused.words) {
			t.Errorf("workspace %s: exit %d, %s", refused.args, code, stderr)
		}
	}
	for range 2 {
		if code, _, stderr := command(t, env, "", "workspace", "archive", name); code != 0 {
			t.Errorf("archive: exit %d, %s", code, stderr)
		}
	}
	if strings.HasSuffix(strings.TrimSpace(row()), " -") {
		t.Errorf("list of an archived one: %q", row())
	}
	if code, _, stderr := command(t, env, "", "key", "create", "--workspace", id, "late"); code != 1 || !strings.Contains(stderr, "archived") {
		t.Errorf("a key of an archived one: exit %d, %s", code, stderr)
	}
	return strings.TrimSpace(secret)
}

// manageKeys makes a key, finds it in the list, revokes it, and answers its secret.
func manageKeys(t *testing.T, env map[string]string) string {
	t.Helper()
	code, secret, stderr := command(t, env, "", "key", "create", "--sandbase", "for a test")
	secret = strings.TrimSpace(secret)
	if code != 0 || !strings.HasPrefix(secret, "sk-sb-") {
		t.Fatalf("create: exit %d, %q, %s", code, secret, stderr)
	}
	id, _, _ := strings.Cut(stderr, " ")
	if code, out, _ := command(t, env, "", "key", "list"); code != 0 || !strings.Contains(out, id) || strings.Contains(out, secret) {
		t.Errorf("list: exit %d, %s", code, out)
	}
	if code, _, stderr := command(t, env, "", "key", "revoke", id); code != 0 {
		t.Errorf("revoke: exit %d, %s", code, stderr)
	}
	if code, _, stderr := command(t, env, "", "key", "revoke", "apikey_nothing"); code != 1 || !strings.Contains(stderr, "not found") {
		t.Errorf("revoking what is not there: exit %d, %s", code, stderr)
	}
	if code, _, stderr := command(t, env, "", "key", "list", "--workspace", "nobody's"); code != 1 || !strings.Contains(stderr, "no workspace") {
		t.Errorf("an unknown workspace: exit %d, %s", code, stderr)
	}
	return secret
}
