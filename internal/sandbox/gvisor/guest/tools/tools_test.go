package tools

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// try runs a tool that holds no state in a directory of this host.
func try(t *testing.T, dir, name string, input map[string]any) result {
	t.Helper()
	raw, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	return runStateless(t.Context(), wire.ToolRequest{Name: name, Input: raw, Dir: dir}, "", stateless(name))
}

func TestReadRanges(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("small", "a\nb\nc\n")
	write("open", "a\nb")
	for _, c := range []struct {
		file       string
		start, end int
		want       string
	}{{"small", 1, 3, "a\nb\nc"}, {"small", 2, 2, "b"}, {"small", 2, 0, "b\nc\n"}, {"small", 1, -1, "a\nb\nc\n"}, {"small", 0, 1, "a"}, {"small", 4, 4, ""},
		{"small", 9, 10, ""}, {"small", 3, 2, ""}, {"small", 2, 99, "b\nc\n"}, {"open", 2, 5, "b"}, {"open", 1, 1, "a"}} {
		if got := try(t, dir, "read", map[string]any{"file_path": c.file, "view_range": []int{c.start, c.end}}); got != (result{text: c.want}) {
			t.Errorf("%s [%d, %d]: %+v", c.file, c.start, c.end, got)
		}
	}
	write("lines", strings.Repeat(strings.Repeat("x", 999)+"\n", 1000))
	write("line", "first\n"+strings.Repeat("y", maxFile+1)+"\nlast\n")
	for _, c := range []struct {
		file       string
		start, end int
		want       string
	}{{"lines", 1, 500, "read: view_range [1, 500] of lines exceeds 262144-byte limit. Narrow the view_range to read a smaller portion."},
		{"line", 2, 2, "read: line 2 of line alone exceeds 262144-byte limit. The read tool cannot return part of a line, so view_range cannot narrow this further."}} {
		if got := try(t, dir, "read", map[string]any{"file_path": c.file, "view_range": []int{c.start, c.end}}); got != (result{c.want, true}) {
			t.Errorf("%s [%d, %d]: %.200s", c.file, c.start, c.end, got.text)
		}
	}
	if got := try(t, dir, "read", map[string]any{"file_path": "line", "view_range": []int{3, 3}}); got.text != "last" {
		t.Errorf("behind a long line: %.100q", got.text)
	}
	for input, want := range map[string]string{`{}`: "read: file_path is required", `{"file_path":"x","view_range":[1]}`: "read: view_range must be [start_line, end_line]",
		`{"file_path":7}`: "invalid read input: ", `[]`: "invalid read input: "} {
		if got := runStateless(t.Context(), wire.ToolRequest{Name: "read", Input: []byte(input), Dir: dir}, "", read); !got.isError || !strings.HasPrefix(got.text, want) {
			t.Errorf("%s: %+v", input, got)
		}
	}
}

func TestEditErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("aXbXc"), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		old, with string
		all       bool
		want      string
	}{{"", "", false, "edit: old_string is required"}, {"Y", "", false, "edit: old_string not found in f"},
		{"X", "", false, "edit: old_string appears 2 times in f (must be unique)"}, {"X", "-", true, "edited f (2 replacement(s))"}, {"a-", "", false, "edited f (1 replacement(s))"}} {
		if got := try(t, dir, "edit", map[string]any{"file_path": "f", "old_string": c.old, "new_string": c.with, "replace_all": c.all}); got.text != c.want {
			t.Errorf("%+v: %s", c, got.text)
		}
	}
	if content, _ := os.ReadFile(filepath.Join(dir, "f")); string(content) != "b-c" {
		t.Errorf("the file holds %q", content)
	}
}

func TestGlobPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{{"*", "a", true}, {"*", "a/b", false}, {"**", "a/b/c", true}, {"**/*.go", "x.go", true}, {"**/*.go", "a/b/x.go", true}, {"a/**/z", "a/z", true},
		{"a/**/z", "a/b/c/z", true}, {"a/**/z", "b/z", false}, {"a/**", "a", true}, {"[a-c]?", "bz", true}, {"[", "[", false}, {"**/**/x", "x", true}, {"a*/b", "ab/b", true}} {
		if got := matches(strings.Split(c.pattern, "/"), strings.Split(c.path, "/")); got != c.want {
			t.Errorf("%s on %s: %t", c.pattern, c.path, got)
		}
	}
	deep := strings.Split(strings.Repeat("a/", 200)+"a", "/")
	if matches(strings.Split(strings.Repeat("**/a/", 100)+"b", "/"), deep) { // exponential when tried one after the other
		t.Error("matched")
	}
}

func TestWalkGrep(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a.txt": "one\ntwo\n", "b/two.txt": "two", ".git/x": "two", "node_modules/y": "two", "bin": "two\x00", "big": strings.Repeat("two\n", maxGrepFile/4+1)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := try(t, dir, "grep", map[string]any{"pattern": "tw[o]"}).text, dir+"/a.txt:2:two\n"+dir+"/b/two.txt:1:two"; got != want {
		t.Errorf("got %q", got)
	}
	if got := try(t, dir, "grep", map[string]any{"pattern": "("}); !got.isError || !strings.HasPrefix(got.text, "grep: invalid regex: ") {
		t.Errorf("got %+v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "many"), []byte(strings.Repeat("needle\n", 20000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := try(t, dir, "grep", map[string]any{"pattern": "needle"}).text; !strings.HasSuffix(got, "\n[output truncated]") || len(got) > maxOutput+100 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestOutput(t *testing.T) {
	for input, want := range map[string]string{"x\n": "x\n", "\n\nx": "x", "a\r\nb\r": "a\nb", "\x1b[1;31mred\x1b[0m": "red", "\xff": "\uFFFD", "": ""} {
		if got := clean([]byte(input)); got != want {
			t.Errorf("%q: %q", input, got)
		}
	}
	spill := filepath.Join(t.TempDir(), "dir", "out")
	o := newOutput(spill)
	line := strings.Repeat("0123456789", 10) + "\n"
	for range 2000 {
		_, _ = o.Write([]byte(line))
	}
	_, _ = o.Write([]byte("\nMARK7\n"))
	raw, status, ok := o.end("MARK")
	if !ok || status != "7" {
		t.Fatalf("status %q, %t", status, ok)
	}
	text := o.text(raw)
	if !strings.HasPrefix(text, truncated+"\n") || !strings.HasSuffix(text, fmt.Sprintf("[the whole output, 202000 bytes, is in %s]", spill)) || len(text) > maxCharacters+200 {
		t.Errorf("%d bytes, %q", len(text), text[len(text)-100:])
	}
	if kept, err := os.ReadFile(spill); err != nil || string(kept) != strings.Repeat(line, 2000) {
		t.Errorf("kept %d bytes, %v", len(kept), err)
	}
	o = newOutput(filepath.Join("/dev/null", "x")) // no place to keep it
	_, _ = o.Write([]byte(strings.Repeat(line, 2000)))
	if text := o.text(o.all()); !strings.Contains(text, "could not be kept: not a directory") {
		t.Errorf("%q", text[len(text)-100:])
	}
}

func TestJournal(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "atoll-journal-") // thousands of syncs
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(memory)
	dir := filepath.Join(memory, "calls")
	j := openJournal(dir)
	done := wire.ToolReply{Text: "result", IsError: true}
	j.begin("sevt_done")
	j.finish("sevt_done", done)
	j.begin("sevt_lost")
	for range 2 { // an other daemon, and this one
		if got, ok := j.result("sevt_done"); !ok || got != done || j.state("sevt_done") != stateDone {
			t.Errorf("done: %+v %t", got, ok)
		}
		if j.state("sevt_lost") != stateBegun || j.state("sevt_new") != stateNew {
			t.Error("states are lost")
		}
		j = openJournal(dir)
	}
	for i := range journalCalls + 10 {
		id := fmt.Sprint("sevt_", i)
		j.begin(id)
		j.finish(id, wire.ToolReply{Text: id})
	}
	j = openJournal(dir)
	if j.state("sevt_done") != stateNew || j.state("sevt_9") != stateNew || j.state("sevt_10") != stateDone || j.state(fmt.Sprint("sevt_", journalCalls+9)) != stateDone {
		t.Error("the last calls are not those that are remembered")
	}
	if _, ok := j.result("sevt_10"); ok {
		t.Error("an old result is kept")
	}
	if got, ok := j.result(fmt.Sprint("sevt_", journalCalls)); !ok || got.Text != fmt.Sprint("sevt_", journalCalls) {
		t.Error("a new result is lost")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > journalResults+2 {
		t.Errorf("%d files are left, %v", len(entries), err)
	}
	// Without a disk it remembers while it lives.
	j = openJournal("/dev/null/x")
	j.begin("sevt_x")
	j.finish("sevt_x", done)
	if got, ok := j.result("sevt_x"); !ok || got != done {
		t.Errorf("without a disk: %+v %t", got, ok)
	}
}

func FuzzJournal(f *testing.F) {
	line := "d 0 sevt_x"
	f.Add([]byte(line + strings.Repeat(" ", slotSize-1-len(line)) + "\n"))
	f.Fuzz(func(t *testing.T, index []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "index"), index, 0o600); err != nil {
			t.Fatal(err)
		}
		j := openJournal(dir)
		j.begin("sevt_new")
		j.finish("sevt_new", wire.ToolReply{Text: "x"})
		if got, ok := j.result("sevt_new"); !ok || got.Text != "x" || j.state("sevt_new") != stateDone {
			t.Error("a damaged index hinders new calls")
		}
	})
}
