package security

import (
	"bytes"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// The matrix is the specification: section, or number, mode, attempt and what
// must happen. The regressions are what failed elsewhere, and the numbers that
// keep it from happening here.
var (
	//go:embed testdata/matrix.tsv
	matrixText string
	//go:embed testdata/regressions.tsv
	regressionsText string
)

const (
	tableFile  = "../../docs/security.md"
	tableBegin = "<!-- begin: written by make security-table -->\n"
	tableEnd   = "<!-- end -->\n"
)

// line is one number of the matrix; a section's title has no number.
type line struct{ number, mode, attempt, must string }

func matrix() []line {
	var out []line
	for text := range strings.Lines(matrixText) {
		text = strings.TrimSuffix(text, "\n")
		if title, ok := strings.CutPrefix(text, "# "); ok {
			out = append(out, line{must: title})
			continue
		}
		f := strings.Split(text, "\t")
		out = append(out, line{f[0], f[1], f[2], f[3]})
	}
	return out
}

// cell says what one place's attempts of a number came to.
func cell(l line, place string, all []result) string {
	var modes, notes []string
	for _, r := range all {
		if r.number != l.number || r.place != place {
			continue
		}
		if r.failed {
			return "**failed**"
		}
		if r.skipped {
			return "skipped"
		}
		modes = append(modes, r.mode)
		for n := range strings.SplitSeq(r.notes, ", ") {
			if n != "" && !slices.Contains(notes, n) {
				notes = append(notes, n)
			}
		}
	}
	if len(modes) == 0 {
		return ""
	}
	slices.Sort(modes)
	modes = slices.Compact(modes)
	out := "held"
	if l.mode == "A" && place != inUnit {
		out += " in " + strings.Join(modes, ", ")
	}
	slices.Sort(notes)
	for i, n := range notes {
		if !strings.Contains(n, " ") {
			notes[i] = "`" + n + "`"
		}
	}
	if len(notes) > 0 {
		out += ": " + strings.Join(notes, ", ")
	}
	return out
}

// table writes the results in Markdown.
func table(all []result) string {
	var b strings.Builder
	held := map[string]bool{}
	for _, l := range matrix() {
		if l.number == "" {
			fmt.Fprintf(&b, "\n### %s\n\n| # | mode | attempt | must happen | inside gVisor | plain process |\n|---|---|---|---|---|---|\n", l.must)
			continue
		}
		gvisor, plain := cell(l, inGVisor, all), cell(l, inPlain, all)
		if u := cell(l, inUnit, all); u != "" {
			gvisor, plain = "unit: "+u, "unit: "+u
		}
		otherGvisor, otherPlain := elsewhereCells(l.number)
		gvisor, plain = join(gvisor, otherGvisor), join(plain, otherPlain)
		held[l.number] = strings.Contains(gvisor+plain, "held") && !strings.Contains(gvisor+plain, "**failed**")
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", l.number, l.mode, l.attempt, l.must, gvisor, plain)
	}
	b.WriteString("\n### What failed elsewhere\n\n| # | what happened | what it teaches | cases | held |\n|---|---|---|---|---|\n")
	for i, text := range strings.Split(strings.TrimSpace(regressionsText), "\n") {
		f := strings.Split(text, "\t")
		var open []string
		for number := range strings.SplitSeq(f[2], " ") {
			if !held[number] {
				open = append(open, number)
			}
		}
		verdict := "yes"
		if len(open) > 0 {
			verdict = "no: " + strings.Join(open, ", ")
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s | %s |\n", i+1, f[0], f[1], strings.ReplaceAll(f[2], " ", ", "), verdict)
	}
	b.WriteString("\n")
	return b.String()
}

// conclude holds docs/security.md to what the run has shown, or writes it.
func conclude(ok bool) error {
	err := closeEngine()
	run := flag.Lookup("test.run").Value.String()
	if !ok || err != nil || run != "" || *only != "" || flag.Lookup("test.skip").Value.String() != "" {
		if *update {
			err = errors.Join(err, errors.New("-update needs a run of all cases without a failure"))
		}
		return err
	}
	doc, err := os.ReadFile(tableFile)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(doc), tableBegin)
	_, after, closed := strings.Cut(rest, tableEnd)
	if !found || !closed {
		return fmt.Errorf("%s has no place for the table", tableFile)
	}
	next := before + tableBegin + table(results.all) + tableEnd + after
	if next == string(doc) {
		return nil
	}
	if *update {
		return os.WriteFile(tableFile, []byte(next), 0o644)
	}
	return fmt.Errorf("%s is not what this run shows: run make security-table. First difference:\n%s", tableFile, difference(string(doc), next))
}

func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return "- " + x[i] + "\n+ " + y[i]
		}
	}
	return "one is longer"
}

// TestTable holds the table in the docs to the matrix: every number once, with a
// result from each place, or the reason why there is one place only.
func TestTable(t *testing.T) {
	t.Parallel()
	if *update {
		t.Skip("the table is being written")
	}
	doc, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string][]string{}
	for text := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(text), "|"), " | ")
		if number := strings.TrimSpace(cells[0]); len(cells) == 6 && strings.HasPrefix(number, "E") {
			if seen[number] != nil {
				t.Errorf("%s is in the table twice", number)
			}
			seen[number] = cells
		}
	}
	for _, l := range matrix() {
		if l.number == "" {
			continue
		}
		cells := seen[l.number]
		if cells == nil {
			t.Errorf("%s is not in the table", l.number)
			continue
		}
		delete(seen, l.number)
		gvisor, plain := strings.TrimSpace(cells[4]), strings.TrimSpace(cells[5])
		if strings.Contains(gvisor+plain, "**failed**") || strings.Contains(gvisor+plain, "skipped") || !strings.Contains(gvisor+plain, "held") || gvisor == "" || plain == "" {
			t.Errorf("%s: %q and %q", l.number, gvisor, plain)
		}
	}
	for number := range seen {
		t.Errorf("%s is in the table and not in the matrix", number)
	}
	if !bytes.Contains(doc, []byte("What failed elsewhere")) {
		t.Error("the regressions are not in the table")
	}
}

// inUnit is the place of cases that need no network.
const inUnit = "unit"

// unit runs a case that needs no sandbox.
func unit(t *testing.T, number string, f func(t *testing.T)) {
	t.Helper()
	if *only != "" && number != *only {
		return
	}
	t.Run(number, func(t *testing.T) {
		defer func() {
			note(&attempt{T: t, s: &stand{mode: "unit", place: inUnit}, number: number}, t.Failed(), t.Skipped())
		}()
		f(t)
	})
}
