package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/atoll-run/atoll/internal/httpapi"
	"github.com/atoll-run/atoll/internal/outbound"
	"github.com/atoll-run/atoll/internal/store"
)

// adminSocketFile is where a running server answers the management of keys, of
// the layer cache and of its configuration, in the data directory, mode 0600.
const adminSocketFile = "admin.sock"

// databaseFile is the database in the data directory.
const databaseFile = "atoll.db"

// administer works on the data directory: through the running server's socket,
// or on the database, whose lock is held meanwhile, when no server runs.
func (f dataFlag) administer(ctx context.Context, io *streams, asked func(*client) error, alone func(dir string, db *store.Store) error) error {
	dir := f.dir(io)
	socket := filepath.Join(dir, adminSocketFile)
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket); err == nil {
		conn.Close()
		return asked(socketClient(socket))
	} else if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("asking the running server: %w", err)
	}
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("no server has run in %s: %w", dir, err)
	}
	db, err := store.Open(ctx, store.Config{Path: path})
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("a server has the database and does not answer on %s; it may be starting or stopping, try again: %w", socket, err)
	}
	if err != nil {
		return err
	}
	return errors.Join(alone(dir, db), db.Close())
}

// socketClient speaks to a server's admin socket.
func socketClient(socket string) *client {
	transport := outbound.Transport()
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &client{
		base: &url.URL{Scheme: "http", Host: "admin"},
		http: outbound.New(outbound.Config{Transport: transport}),
	}
}

// serveAdmin answers the management of keys, cache and configuration on the data directory's socket until ctx
// ends. The caller holds the database's lock, so that a socket that is there
// already is a dead server's.
func serveAdmin(ctx context.Context, data string, keys httpapi.AdminKeys, cache httpapi.AdminCache, reload httpapi.AdminReload) error {
	path := filepath.Join(data, adminSocketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the old admin socket: %w", err)
	}
	// Made where nobody else can look, and moved into place once its mode is set.
	private, err := os.MkdirTemp(data, ".admin-")
	if err != nil {
		return fmt.Errorf("making the admin socket: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return fmt.Errorf("making the admin socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return errors.Join(fmt.Errorf("making the admin socket: %w", err), listener.Close())
	}
	server := &http.Server{Handler: httpapi.Admin(keys, cache, reload), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // its error is the listener's, closed
	defer stop()
	err = server.Serve(listener)
	if removeErr := os.Remove(path); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
		return fmt.Errorf("removing the admin socket: %w", removeErr)
	}
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving key management: %w", err)
}
