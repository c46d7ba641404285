package httpapi

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/atoll-run/atoll/internal/control"
)

// maxPath is how long a path may be: what Linux takes.
const maxPath = 4096

// fileReply answers a change of a file.
type fileReply struct {
	Type string `json:"type"` // file_written, directory_written or file_removed
	Path string `json:"path"`
}

func filePath(q *query) string {
	p := q.text("path")
	switch {
	case p == "":
		q.bad("path", "Field required")
	case len(p) > maxPath || strings.Contains(p, "\x00"):
		q.bad("path", fmt.Sprintf("Input should be a path of at most %d bytes without NUL", maxPath))
	}
	return p
}

// readFile sends a file as it is and a directory as a tar.
func (s *server) readFile(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	p := filePath(q)
	if q.err != nil {
		return q.err
	}
	info, body, err := s.sandboxes.ReadFile(r.Context(), caller, r.PathValue("id"), p)
	if err != nil {
		return err
	}
	defer body.Close()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Atoll-Mode", fmt.Sprintf("%04o", info.Mode&0o7777))
	var source io.Reader = body
	if info.Dir {
		w.Header().Set("Content-Type", "application/x-tar")
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Last-Modified", info.Mtime.UTC().Format(http.TimeFormat))
		if info.Size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
			source = io.LimitReader(body, info.Size) // a file that grows meanwhile
		}
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	n, err := io.Copy(w, source)
	if err == nil && !info.Dir && n < info.Size {
		err = io.ErrUnexpectedEOF // a file that shrank meanwhile
	}
	return s.endStream(r, func() {}, true, err)
}

// writeFile replaces a file, or unpacks a tar into a directory.
func (s *server) writeFile(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	p := filePath(q)
	mode := uint64(0o644)
	if text := q.text("mode"); text != "" {
		var err error
		if mode, err = strconv.ParseUint(text, 8, 32); err != nil || mode > 0o7777 {
			q.bad("mode", "Input should be an octal file mode like 0644")
		}
	}
	if q.err != nil {
		return q.err
	}
	if isArchive(r.Header.Get("Content-Type"), p) {
		if err := s.sandboxes.WriteTar(r.Context(), caller, r.PathValue("id"), p, r.Body); err != nil {
			return bodyError(r, err)
		}
		return reply(w, fileReply{Type: "directory_written", Path: p})
	}
	if err := s.sandboxes.WriteFile(r.Context(), caller, r.PathValue("id"), p, uint32(mode), r.Body); err != nil {
		return bodyError(r, err)
	}
	return reply(w, fileReply{Type: "file_written", Path: p})
}

// archiveTypes are the content types of archives that are unpacked: true for those
// that say no more than how something is compressed.
var archiveTypes = map[string]bool{
	"application/x-tar": false, "application/x-gtar": false, "application/tar": false,
	"application/x-compressed-tar": false, "application/x-gtar-compressed": false, "application/x-tar+gzip": false,
	"application/x-zstd-compressed-tar": false, "application/x-tar+zstd": false,
	"application/gzip": true, "application/x-gzip": true, "application/zstd": true, "application/x-zstd": true,
}

// isArchive tells whether a body is to be unpacked into the directory p. A
// compressed body whose path has the name of a compressed file is that file.
func isArchive(contentType, p string) bool {
	mediaType, _, _ := mime.ParseMediaType(contentType) // anything else is a file's content
	compressed, known := archiveTypes[mediaType]
	switch path.Ext(p) {
	case ".gz", ".tgz", ".zst", ".tzst", ".zstd":
		return known && !compressed
	}
	return known
}

// bodyError tells a body that did not come from what else went wrong.
func bodyError(r *http.Request, err error) error {
	if _, ok := control.AsFault(err); ok {
		return err
	}
	if body := noteOf(r).body; body != nil && body.broken() {
		return &control.Fault{Kind: control.Invalid, Message: "Request body could not be read", Cause: err}
	}
	return err
}

func (s *server) removeFile(w http.ResponseWriter, r *http.Request, caller control.Caller) error {
	q := queryOf(r)
	p := filePath(q)
	if q.err != nil {
		return q.err
	}
	if err := s.sandboxes.RemoveFile(r.Context(), caller, r.PathValue("id"), p); err != nil {
		return err
	}
	return reply(w, fileReply{Type: "file_removed", Path: p})
}
