package tools

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func read(_ context.Context, p place, input []byte) result {
	var in struct {
		FilePath  string  `json:"file_path"`
		ViewRange []int64 `json:"view_range"`
	}
	if r, ok := decode("read", input, &in); !ok {
		return r
	}
	if in.FilePath == "" {
		return fail("read: file_path is required")
	}
	path, err := p.resolve(in.FilePath)
	if err != nil {
		return fail("read: %v", err)
	}
	if n := len(in.ViewRange); n != 0 && n != 2 {
		return fail("read: view_range must be [start_line, end_line]")
	}
	f, size, r := openRegular("read", path, in.FilePath)
	if f == nil {
		return r
	}
	defer f.Close()
	if len(in.ViewRange) == 2 {
		return readLines(f, in.FilePath, in.ViewRange[0], in.ViewRange[1])
	}
	if size > maxFile {
		return fail("read: %s is %d bytes, exceeds %d-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].",
			in.FilePath, size, maxFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1)) // files of /proc say that they are empty
	if err != nil {
		return fail("read %s: %s", in.FilePath, reason(err))
	}
	if len(data) > maxFile {
		return fail("read: %s holds more than the %d-byte limit. Use the view_range parameter to read specific line ranges, e.g. view_range: [1, 500].",
			in.FilePath, maxFile)
	}
	return say("%s", data)
}

// openRegular opens a regular file without ever waiting for another kind. The
// file is nil when the result says why not.
func openRegular(tool, path, name string) (*os.File, int64, result) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fail("%s %s: %s", tool, name, reason(err))
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fail("%s: %s is not a regular file", tool, name)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, fail("%s %s: %s", tool, name, reason(err))
	}
	return f, info.Size(), result{}
}

// readLines reads the lines from start to end, counted from 1, both included;
// an end of 0 or less means the last one. A line is never held whole before it
// is known to be wanted and to fit.
func readLines(f io.Reader, name string, start, end int64) result {
	start = max(start, 1)
	last := end
	if end <= 0 {
		last = 1<<63 - 1
	}
	if last < start {
		return say("")
	}
	in := bufio.NewReaderSize(f, 64<<10)
	var text strings.Builder
	for line := int64(1); line <= last; {
		part, err := in.ReadSlice('\n')
		if line >= start {
			whole := strings.TrimSuffix(string(part), "\n")
			text.WriteString(whole)
			if len(whole) < len(part) && line < last {
				text.WriteByte('\n')
			}
			if text.Len() > maxFile {
				return tooLong(name, start, last, end)
			}
		}
		switch {
		case err == nil:
			line++
		case errors.Is(err, bufio.ErrBufferFull): // the same line goes on
		case errors.Is(err, io.EOF):
			return say("%s", text.String())
		default:
			return fail("read %s: %s", name, reason(err))
		}
	}
	return say("%s", text.String())
}

func tooLong(name string, start, last, end int64) result {
	if last == start {
		return fail("read: line %d of %s alone exceeds %d-byte limit. The read tool cannot return part of a line, so view_range cannot narrow this further.",
			start, name, maxFile)
	}
	return fail("read: view_range [%d, %d] of %s exceeds %d-byte limit. Narrow the view_range to read a smaller portion.", start, end, name, maxFile)
}

func write(_ context.Context, p place, input []byte) result {
	var in struct {
		FilePath string `json:"file_path"`
		Content  string `json:"content"`
	}
	if r, ok := decode("write", input, &in); !ok {
		return r
	}
	if in.FilePath == "" {
		return fail("write: file_path is required")
	}
	path, err := p.resolve(in.FilePath)
	if err != nil {
		return fail("write: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail("write %s: mkdir: %s", in.FilePath, reason(err))
	}
	if err := ReplaceFile(p.staging, path, 0o600, strings.NewReader(in.Content)); err != nil {
		return fail("write %s: %s", in.FilePath, reason(err))
	}
	return say("wrote %d bytes to %s", len(in.Content), in.FilePath)
}

func edit(_ context.Context, p place, input []byte) result {
	var in struct {
		FilePath   string `json:"file_path"`
		OldString  string `json:"old_string"`
		NewString  string `json:"new_string"`
		ReplaceAll bool   `json:"replace_all"`
	}
	if r, ok := decode("edit", input, &in); !ok {
		return r
	}
	if in.FilePath == "" {
		return fail("edit: file_path is required")
	}
	if in.OldString == "" {
		return fail("edit: old_string is required")
	}
	path, err := p.resolve(in.FilePath)
	if err != nil {
		return fail("edit: %v", err)
	}
	f, size, r := openRegular("edit", path, in.FilePath)
	if f == nil {
		return r
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	_ = f.Close()
	switch {
	case err != nil:
		return fail("edit %s: %s", in.FilePath, reason(err))
	case size > maxFile || len(data) > maxFile:
		return fail("edit: %s is %d bytes, exceeds %d-byte limit. The edit tool loads the whole file and cannot modify a file this large.",
			in.FilePath, max(size, int64(len(data))), maxFile)
	}
	content := string(data)
	count := strings.Count(content, in.OldString)
	switch {
	case count == 0:
		return fail("edit: old_string not found in %s", in.FilePath)
	case count > 1 && !in.ReplaceAll:
		return fail("edit: old_string appears %d times in %s (must be unique)", count, in.FilePath)
	}
	if err := ReplaceFile(p.staging, path, 0o600, strings.NewReader(strings.ReplaceAll(content, in.OldString, in.NewString))); err != nil {
		return fail("edit %s: %s", in.FilePath, reason(err))
	}
	return say("edited %s (%d replacement(s))", in.FilePath, count)
}
