package image

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTerminalProgress(t *testing.T) {
	t.Parallel()
	show := func(tty bool) string {
		var b bytes.Buffer
		p := NewTerminalProgress(&b, tty)
		p.Stage("one")
		p.Log("hidden \x1b[2J line")
		p.Percent(10)
		p.Percent(30)
		p.Percent(99)
		p.Stage("two")
		p.Stage("two")
		p.Close()
		p.Close()
		return b.String()
	}
	if diff := cmp.Diff("one\none: 25%\none: 75%\ntwo\n", show(false)); diff != "" {
		t.Error(diff)
	}
	tty := show(true)
	if !strings.Contains(tty, "one") || !strings.Contains(tty, "hidden [2J line") || strings.Contains(tty, "hidden \x1b") {
		t.Errorf("on a terminal: %q", tty)
	}
}

// recorder keeps what it is told.
type recorder struct {
	stages   []string
	percents []float64
}

func (r *recorder) Stage(s string)    { r.stages = append(r.stages, s) }
func (r *recorder) Percent(p float64) { r.percents = append(r.percents, p) }
func (r *recorder) Log(string)        {}

func TestBootstrapOutput(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	w := &bootstrapOutput{p: r}
	text := "I: running apt-get update...\nGet:1 http://m.example.com x InRelease\nI: downloading packages with apt...\n0 upgraded, 2 newly installed, 0 to remove\n" +
		"Get:1 http://m.example.com a\nGet:2 http://m.example.com b\nI: installing remaining packages\n0 upgraded, 1 newly installed\nUnpacking a ...\nSetting up a ...\nE: the end\n"
	for chunk := range strings.SplitAfterSeq(text, "e") { // as it comes through a pipe
		if _, err := w.Write([]byte(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"fetching package lists", "downloading the essential packages", "installing packages"}, r.stages); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float64{16.5, 33, 66, 99}, r.percents); diff != "" {
		t.Error(diff)
	}
	if !strings.HasSuffix(w.tail(), "E: the end") {
		t.Errorf("tail is %q", w.tail())
	}
}
