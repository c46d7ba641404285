package httpapi

import "testing"

func TestIsArchive(t *testing.T) {
	for _, c := range []struct {
		contentType, path string
		want              bool
	}{
		{"application/x-tar", "/workspace/d", true},
		{"application/x-tar; charset=binary", "/workspace/d.tgz", true},
		{"application/gzip", "/workspace/d", true},
		{"application/zstd", "d/", true},
		{"application/gzip", "/workspace/logs.gz", false},
		{"application/gzip", "/workspace/code.tar.gz", false},
		{"application/zstd", "code.tar.zst", false},
		{"application/octet-stream", "/workspace/d", false},
		{"", "/workspace/d", false},
		{"not a type;;", "/workspace/d", false},
	} {
		if got := isArchive(c.contentType, c.path); got != c.want {
			t.Errorf("%q for %q: %v", c.contentType, c.path, got)
		}
	}
}
