package wire_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

func TestHead(t *testing.T) {
	want := wire.Head{Kind: wire.KindFile, Text: "no\nspace", Path: "/x", Size: 3, Mode: 0o644, Mtime: time.Unix(5, 7).UTC()}
	var line bytes.Buffer
	if err := wire.WriteHead(&line, want); err != nil {
		t.Fatal(err)
	}
	line.WriteString("content")
	got, err := wire.ReadHead(&line)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if line.String() != "content" {
		t.Errorf("%q is left, want the content", line.String())
	}
}

func TestChunks(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 300_000)
	var stream bytes.Buffer
	w := wire.ChunkWriter{W: &stream}
	if n, err := w.Write(content); n != len(content) || err != nil {
		t.Fatal(n, err)
	}
	broken := bytes.Clone(stream.Bytes())
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(&wire.ChunkReader{R: &stream})
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes of %d, %v", len(got), len(content), err)
	}
	if _, err := io.ReadAll(&wire.ChunkReader{R: bytes.NewReader(broken)}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a stream without its end: %v", err)
	}
}

// FuzzReadHead feeds the server's parser what a hostile sandbox may say.
func FuzzReadHead(f *testing.F) {
	for _, seed := range []string{"{}\n", `{"kind":"nofile"}` + "\n", `{"size":-1}` + "\n", "{", "\n", `{"size":1e99}` + "\n", `{"mtime":"x"}` + "\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		head, err := wire.ReadHead(bytes.NewReader(data))
		if err == nil && head.Size < 0 {
			t.Errorf("accepted %+v", head)
		}
	})
}

// FuzzChunkReader feeds the guest's parser any stream.
func FuzzChunkReader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 'x', 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := io.ReadAll(&wire.ChunkReader{R: bytes.NewReader(data)})
		if len(got) > len(data) {
			t.Errorf("%d bytes came out of %d", len(got), len(data))
		}
		if err == nil && len(data) < 4 {
			t.Error("accepted a stream without an end mark")
		}
	})
}
