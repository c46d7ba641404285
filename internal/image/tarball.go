package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/atoll-run/atoll/internal/durable"
	"github.com/klauspost/compress/zstd"
)

// decompress returns the plain archive in r, recognised by its first bytes. It must be closed.
func decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<20)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(br)
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return newXZReader(ctx, br)
	}
	return io.NopCloser(br), nil
}

// xzReader reads through the host's xz: a decompressor of our own is not worth its risk.
type xzReader struct {
	io.Reader
	cmd    *exec.Cmd
	cancel context.CancelFunc
}

func newXZReader(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout")
	cmd.Stdin = r
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("unpacking xz (install the package xz-utils): %w", err)
	}
	return &xzReader{out, cmd, cancel}, nil
}

// Read reports a failed xz instead of the end of its output.
func (x *xzReader) Read(b []byte) (int, error) {
	n, err := x.Reader.Read(b)
	if err == io.EOF && x.cmd.ProcessState == nil {
		if werr := x.cmd.Wait(); werr != nil {
			return n, fmt.Errorf("unpacking xz: %w", werr)
		}
	}
	return n, err
}

// Close ends xz if it still runs.
func (x *xzReader) Close() error {
	x.cancel()
	if x.cmd.ProcessState == nil {
		_ = x.cmd.Wait()
	}
	return nil
}

// unpackTarball fills rootfs with the tarball and returns what was left out.
func unpackTarball(ctx context.Context, t *Tarball, cache, scratch, rootfs string, client *http.Client, p Progress) ([]string, error) {
	name := t.Path
	if t.URL != "" {
		p.Stage("downloading the archive")
		var err error
		if name, err = fetchBlob(ctx, cache, scratch, "sha256:"+t.SHA256, p, func(ctx context.Context) (io.ReadCloser, int64, error) {
			return httpBody(ctx, client, t.URL)
		}); err != nil {
			return nil, err
		}
	}
	p.Stage("unpacking the archive")
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening the archive: %w", err)
	}
	defer f.Close()
	// Checked before anything is unpacked, and again as it is read: the file is not ours.
	if err := checkSum(f, t.SHA256); err != nil {
		return nil, fmt.Errorf("archive %s: %w", name, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	sum := sha256.New()
	tee := io.TeeReader(f, sum)
	plain, err := decompress(ctx, tee)
	if err != nil {
		return nil, fmt.Errorf("reading the archive: %w", err)
	}
	defer plain.Close()
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil, fmt.Errorf("unpacking the archive: %w", err)
	}
	defer root.Close()
	u := &unpacker{root: root}
	if err := u.apply(ctx, plain); err != nil {
		return nil, fmt.Errorf("unpacking the archive: %w", err)
	}
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return nil, fmt.Errorf("unpacking the archive: %w", err)
	}
	if _, err := io.Copy(io.Discard, tee); err != nil || hexSum(sum) != t.SHA256 {
		return nil, errors.New("the archive changed while it was unpacked")
	}
	return u.skipped, nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func checkSum(r io.Reader, want string) error {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := hexSum(h); got != want {
		return fmt.Errorf("sha256 is %s, not %s as declared", got, want)
	}
	return nil
}

func httpBody(ctx context.Context, client *http.Client, url string) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, 0, fmt.Errorf("the server answered %s", resp.Status)
	}
	return resp.Body, resp.ContentLength, nil
}

// fetchBlob returns the path of the blob with the digest ("sha256:…") in the cache, downloading it if it is not
// there. A blob appears under its name only when it is whole and its digest is right: until then it is in scratch, which
// must be on the same file system.
func fetchBlob(ctx context.Context, cache, scratch, digest string, p Progress, open func(context.Context) (io.ReadCloser, int64, error)) (string, error) {
	sum := digest[len("sha256:"):]
	dir := filepath.Join(cache, "oci")
	name := filepath.Join(dir, "sha256-"+sum)
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	body, size, err := open(ctx)
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	defer body.Close()
	tmp, err := os.CreateTemp(scratch, "part-*")
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, h), &percentReader{r: body, size: size, p: p}); err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	if got := hexSum(h); got != sum {
		return "", fmt.Errorf("downloading %s: the content's sha256 is %s", digest, got)
	}
	if err := tmp.Sync(); err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	if err := durable.Rename(tmp.Name(), name); err != nil {
		return "", fmt.Errorf("downloading %s: %w", digest, err)
	}
	return name, nil
}

// percentReader tells how much of size was read.
type percentReader struct {
	r       io.Reader
	p       Progress
	size, n int64
}

func (r *percentReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if r.n += int64(n); r.size > 0 {
		r.p.Percent(100 * float64(r.n) / float64(r.size))
	}
	return n, err
}
