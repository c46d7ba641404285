package tools

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const truncated = "[output truncated]"

var errEnough = errors.New("enough")

func glob(ctx context.Context, p place, input []byte) result {
	var in struct{ Pattern, Path string }
	if r, ok := decode("glob", input, &in); !ok {
		return r
	}
	parts := strings.Split(in.Pattern, "/")
	switch {
	case in.Pattern == "":
		return fail("glob: pattern is required")
	case filepath.IsAbs(in.Pattern):
		return fail("glob: absolute pattern not permitted; pass a relative pattern (and optionally path)")
	case slices.Contains(parts, ".."):
		return fail(`glob: pattern %q must not contain a ".." segment`, in.Pattern)
	}
	dir, err := p.resolve(cmp.Or(in.Path, "."))
	if err != nil {
		return fail("glob: %v", err)
	}
	type found struct {
		path string
		at   time.Time
	}
	var all []found
	_ = walk(ctx, dir, nil, func(path string, entry fs.DirEntry) error {
		if path == dir || !matches(parts, strings.Split(strings.TrimPrefix(path[len(dir):], "/"), "/")) {
			return nil
		}
		f := found{path: path}
		if info, err := entry.Info(); err == nil {
			f.at = info.ModTime()
		}
		all = append(all, f)
		return nil
	})
	if len(all) == 0 {
		return say("no matches")
	}
	slices.SortStableFunc(all, func(a, b found) int { return b.at.Compare(a.at) })
	var text strings.Builder
	for i, f := range all[:min(len(all), maxPaths)] {
		if i > 0 {
			text.WriteByte('\n')
		}
		text.WriteString(f.path)
	}
	return say("%s", text.String())
}

// walk visits everything below dir, at most maxEntries of it, and follows no
// link. What cannot be read is passed over. Directories that skip names are not
// entered; with a skip only files count.
func walk(ctx context.Context, dir string, skip []string, visit func(path string, entry fs.DirEntry) error) error {
	seen := 0
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case entry == nil || err != nil && !entry.IsDir():
			return nil
		case err != nil:
			return fs.SkipDir
		case path == dir && entry.IsDir():
			return nil
		case entry.IsDir() && slices.Contains(skip, entry.Name()):
			return fs.SkipDir
		}
		if skip == nil || entry.Type().IsRegular() {
			seen++
		}
		if seen > maxEntries {
			return errEnough
		}
		return visit(path, entry)
	})
}

// matches tells whether the elements of a path match those of a pattern, in
// which "**" stands for any number of them. It keeps, for each element of the
// path, which places of the pattern are reached: no pattern makes it slow.
func matches(pattern, path []string) bool {
	reached := closure(pattern, map[int]bool{0: true})
	for _, name := range path {
		next := map[int]bool{}
		for at := range reached {
			switch {
			case at == len(pattern):
			case pattern[at] == "**":
				next[at] = true
			default:
				if ok, err := filepath.Match(pattern[at], name); ok && err == nil {
					next[at+1] = true
				}
			}
		}
		reached = closure(pattern, next)
	}
	return reached[len(pattern)]
}

// closure adds the places behind each "**", which may stand for nothing.
func closure(pattern []string, reached map[int]bool) map[int]bool {
	for at := range pattern {
		if reached[at] && pattern[at] == "**" {
			reached[at+1] = true
		}
	}
	return reached
}

func grep(ctx context.Context, p place, input []byte) result {
	var in struct{ Pattern, Path string }
	if r, ok := decode("grep", input, &in); !ok {
		return r
	}
	if in.Pattern == "" {
		return fail("grep: pattern is required")
	}
	path, err := p.resolve(cmp.Or(in.Path, "."))
	if err != nil {
		return fail("grep: %v", err)
	}
	if rg := p.ripgrep(); rg != "" {
		return runRipgrep(ctx, p, rg, in.Pattern, path)
	}
	return walkGrep(ctx, in.Pattern, path)
}

// ripgrep finds rg on the PATH, but not where the agent's own files are: what
// it has written there is no program of ours.
func (p place) ripgrep() string {
	for _, v := range slices.Backward(p.env) {
		list, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			if !filepath.IsAbs(dir) {
				continue
			}
			real, err := follow(filepath.Join(dir, "rg"))
			if err != nil || p.permits(real) {
				continue
			}
			if info, err := os.Stat(real); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return real
			}
		}
		break
	}
	return ""
}

func runRipgrep(ctx context.Context, p place, rg, pattern, path string) result {
	cmd := exec.CommandContext(ctx, rg, "--no-config", "-n", "--no-heading", "--max-filesize", fmt.Sprint(maxGrepFile), "-e", pattern, "--", path)
	cmd.Env, cmd.Dir, cmd.WaitDelay = p.env, "/", time.Second
	stdout, stderr := &head{max: maxOutput}, &head{max: 4096}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return say("no matches")
	}
	if err != nil {
		return fail("grep: rg failed: %v: %s", err, stderr.data)
	}
	if stdout.more {
		return say("%s\n%s", stdout.data, truncated)
	}
	return say("%s", stdout.data)
}

// head keeps the beginning of what is written to it and lets the writer go on.
type head struct {
	data []byte
	max  int
	more bool
}

func (h *head) Write(p []byte) (int, error) {
	take := min(len(p), h.max-len(h.data))
	h.data = append(h.data, p[:take]...)
	h.more = h.more || take < len(p)
	return len(p), nil
}

// walkGrep is for images without ripgrep.
func walkGrep(ctx context.Context, pattern, path string) result {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return fail("grep: invalid regex: %v", err)
	}
	var lines []string
	room := maxOutput
	_ = walk(ctx, path, []string{".git", "node_modules"}, func(path string, entry fs.DirEntry) error {
		if !entry.Type().IsRegular() {
			return nil
		}
		for i, line := range textLines(path, entry) {
			if !re.MatchString(line) {
				continue
			}
			hit := fmt.Sprintf("%s:%d:%s", path, i+1, line)
			if room -= len(hit) + 1; room < 0 {
				lines = append(lines, truncated)
				return errEnough
			}
			lines = append(lines, hit)
		}
		return nil
	})
	if len(lines) == 0 {
		return say("no matches")
	}
	return say("%s", strings.Join(lines, "\n"))
}

// textLines are the lines of a file, or none if it is too large, looks binary
// or cannot be read.
func textLines(path string, entry fs.DirEntry) []string {
	if info, err := entry.Info(); err != nil || info.Size() > maxGrepFile {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	in := bufio.NewReader(f)
	if start, _ := in.Peek(512); bytes.IndexByte(start, 0) >= 0 {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(in, maxGrepFile+1))
	if err != nil || len(data) > maxGrepFile {
		return nil
	}
	return strings.Split(string(data), "\n")
}
