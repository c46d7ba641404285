package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/control"

	"github.com/atoll-run/atoll/internal/sandbox"
	"github.com/atoll-run/atoll/internal/sandbox/gvisor/guest/wire"
)

// guestCommand runs the guest program in a sandbox, from the host's descriptor.
func (e *Engine) guestCommand(ctx context.Context, id string, args []string, stdin io.Reader, stdout io.Writer) (*process, error) {
	b, err := e.open(id)
	if err != nil {
		return nil, err
	}
	exec := &control.ExecArgs{
		Argv: append([]string{"atoll-guest"}, args...), Envv: []string{"GOMAXPROCS=1", "HOME=/"}, WorkingDirectory: "/",
	}
	return e.exec(ctx, id, b, exec, sandbox.Command{Stdin: stdin, Stdout: stdout}, e.guest)
}

// inside makes a path absolute without cleaning it: links decide what ".." is.
func (e *Engine) inside(id, name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("empty path: %w", sandbox.ErrNoFile)
	}
	if path.IsAbs(name) {
		return name, nil
	}
	b, err := e.open(id)
	if err != nil {
		return "", err
	}
	return b.meta.Dir + "/" + name, nil
}

// ReadFile opens a file, or a directory as a tar stream.
func (e *Engine) ReadFile(ctx context.Context, id, name string) (sandbox.FileInfo, io.ReadCloser, error) {
	name, err := e.inside(id, name)
	if err != nil {
		return sandbox.FileInfo{}, nil, err
	}
	from, to := io.Pipe()
	process, err := e.guestCommand(ctx, id, []string{"read", name}, nil, to)
	if err != nil {
		return sandbox.FileInfo{}, nil, err
	}
	// The reader sees the end of the stream only after the guest said that it
	// is complete.
	go func() {
		exit, err := process.Wait(context.Background())
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("reading %s: broken off: %w", name, sandbox.ErrFile)
		}
		_ = to.CloseWithError(err)
	}()
	content := &fileReader{Reader: bufio.NewReaderSize(from, 32<<10), from: from, process: process}
	content.stop = context.AfterFunc(ctx, func() { content.abort(ctx.Err()) })
	head, err := wire.ReadHead(content.Reader)
	if err == nil {
		err = headError(name, head)
	}
	if err != nil {
		_ = content.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return sandbox.FileInfo{}, nil, err
	}
	info := sandbox.FileInfo{Path: name, Dir: head.Dir, Size: head.Size, Mode: head.Mode & 0o7777, Mtime: head.Mtime}
	if head.Unsized {
		info.Size = -1
	}
	return info, content, nil
}

// fileReader is the content of a file on its way out.
type fileReader struct {
	*bufio.Reader
	from    *io.PipeReader
	process *process
	stop    func() bool
}

func (r *fileReader) abort(err error) {
	_ = r.from.CloseWithError(err)
	_ = r.process.Signal(context.Background(), int(unix.SIGKILL))
}

// Close ends the transfer; what was not read is not sent.
func (r *fileReader) Close() error {
	r.stop()
	r.abort(io.ErrClosedPipe)
	return nil
}

// headError turns the guest's answer into an error of the contract.
func headError(name string, head wire.Head) error {
	switch head.Kind {
	case wire.KindNone:
		return nil
	case wire.KindNoFile:
		return fmt.Errorf("%s: %w", name, sandbox.ErrNoFile)
	}
	return fmt.Errorf("%s: %w: %.1024s", name, sandbox.ErrFile, strconv.QuoteToGraphic(head.Text))
}

// WriteFile replaces a file atomically.
func (e *Engine) WriteFile(ctx context.Context, id, name string, mode uint32, r io.Reader) error {
	return e.send(ctx, id, name, r, "write", strconv.FormatUint(uint64(mode&0o777), 8))
}

// WriteTar unpacks a tar stream into a directory.
func (e *Engine) WriteTar(ctx context.Context, id, name string, r io.Reader) error {
	return e.send(ctx, id, name, r, "untar")
}

// Remove removes a file or a directory with all in it.
func (e *Engine) Remove(ctx context.Context, id, name string) error {
	return e.send(ctx, id, name, nil, "remove")
}

// send gives the guest a request with content and waits for its answer.
func (e *Engine) send(ctx context.Context, id, name string, content io.Reader, verb string, rest ...string) error {
	name, err := e.inside(id, name)
	if err != nil {
		return err
	}
	var source *sender
	var stdin io.Reader
	if content != nil {
		source = newSender(content)
		defer source.close()
		stdin = source.pipe
	}
	answer := &capped{}
	process, err := e.guestCommand(ctx, id, append([]string{verb, name}, rest...), stdin, answer)
	if err != nil {
		return err
	}
	if _, err := process.Wait(ctx); err != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = process.Signal(kill, int(unix.SIGKILL))
		return err
	}
	if source != nil {
		if err := source.failed(); err != nil {
			return fmt.Errorf("writing %s: reading content: %w", name, err)
		}
	}
	head, err := wire.ReadHead(answer)
	if err != nil {
		return fmt.Errorf("writing %s: %w: %w", name, sandbox.ErrFile, err)
	}
	return headError(name, head)
}

// sender frames content for the guest's standard input.
type sender struct {
	pipe *io.PipeReader
	err  chan error // the content's own failure, or nil; one value
}

func newSender(content io.Reader) *sender {
	from, to := io.Pipe()
	s := &sender{pipe: from, err: make(chan error, 1)}
	go func() {
		source := &sourceReader{r: content}
		chunks := wire.ChunkWriter{W: to}
		_, err := io.CopyBuffer(struct{ io.Writer }{chunks}, source, make([]byte, 64<<10))
		s.err <- source.err // what the guest did not take is not the content's failure
		if err == nil {
			err = chunks.Close()
		}
		_ = to.CloseWithError(errors.Join(err)) // without the end mark the guest discards all
	}()
	return s
}

func (s *sender) close() { _ = s.pipe.Close() }

// failed reports the content's own error. A reader that still blocks has none.
func (s *sender) failed() error {
	select {
	case err := <-s.err:
		return err
	default:
		return nil
	}
}

// sourceReader remembers the error of the caller's reader.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// capped holds the first line of an answer and no more than a head may have.
type capped struct {
	data []byte
	next int
}

func (c *capped) Write(p []byte) (int, error) {
	c.data = append(c.data, p[:min(len(p), wire.MaxHead+1-len(c.data))]...)
	return len(p), nil
}

// ReadByte reads the answer, after the guest has ended.
func (c *capped) ReadByte() (byte, error) {
	if c.next == len(c.data) {
		return 0, io.EOF
	}
	c.next++
	return c.data[c.next-1], nil
}
