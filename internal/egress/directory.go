package egress

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/atoll-run/atoll/internal/durable"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// directory is where networks are kept, one directory each:
//
//	ID/runtime, ID/gateway   mounts that hold the two namespaces
//	ID/network.json          on whose behalf, and the policy
//	ID/names                 the table of synthetic addresses
//	ID/records               decisions, while the network is not served
//
// It is a mount of its own with private propagation, so that the mounts in it
// show in no other mount namespace of the machine.
type directory struct{ path string }

func openDirectory(dir string) (directory, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return directory{}, err
	}
	d := directory{filepath.Join(abs, "networks")}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return d, err
	}
	// An earlier server that was killed has left the mount.
	if mounted, err := isMount(d.path); err != nil {
		return d, err
	} else if !mounted {
		if err := unix.Mount(d.path, d.path, "", unix.MS_BIND, ""); err != nil {
			return d, &os.PathError{Op: "mount", Path: d.path, Err: err}
		}
	}
	if err := unix.Mount("", d.path, "", unix.MS_PRIVATE, ""); err != nil {
		return d, &os.PathError{Op: "make private", Path: d.path, Err: err}
	}
	return d, nil
}

// release unmounts the directory if no network is left in it.
func (d directory) release() error {
	ids, err := d.list()
	if err != nil || len(ids) > 0 {
		return err
	}
	return unmount(d.path)
}

func (d directory) list() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	ids := []string{}
	for _, e := range entries {
		if validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func validID(id string) bool {
	for i := 0; i < len(id); i++ {
		if c := id[i]; !nameByte(c) || c == '.' {
			return false
		}
	}
	return len(id) >= 1 && len(id) <= 64
}

// home is one network's directory.
type home struct{ id, path string }

func (d directory) create(id string) (home, error) {
	h := home{id, filepath.Join(d.path, id)}
	err := os.Mkdir(h.path, 0o700)
	if errors.Is(err, os.ErrExist) {
		return h, fmt.Errorf("network %s: %w", id, ErrExists)
	}
	return h, err
}

func (d directory) open(id string) (home, error) {
	h := home{id, filepath.Join(d.path, id)}
	_, err := os.Lstat(h.path)
	if errors.Is(err, os.ErrNotExist) {
		return h, fmt.Errorf("network %s: %w", id, ErrNotFound)
	}
	return h, err
}

func (h home) runtime() string { return filepath.Join(h.path, "runtime") }
func (h home) gateway() string { return filepath.Join(h.path, "gateway") }
func (h home) table() string   { return filepath.Join(h.path, "names") }
func (h home) about() string   { return filepath.Join(h.path, "network.json") }

// hold mounts the two namespaces, which keeps them without any process.
func (h home) hold(p *pair) error {
	for path, ns := range map[string]netns.NsHandle{h.runtime(): p.runtime, h.gateway(): p.gateway} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", int(ns)), path, "", unix.MS_BIND, ""); err != nil {
			return stepError("keeping network namespace", &os.PathError{Op: "mount", Path: path, Err: err})
		}
	}
	return nil
}

// namespaces opens what hold mounted.
func (h home) namespaces() (*pair, error) {
	p := &pair{netns.None(), netns.None()}
	var err error
	if p.runtime, err = openNamespace(h.runtime()); err == nil {
		p.gateway, err = openNamespace(h.gateway())
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func openNamespace(path string) (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), stepError("opening network namespace", err)
	}
	// After a restart of the machine the mount is gone and a plain file is left.
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		_ = ns.Close()
		return netns.None(), fmt.Errorf("network namespace %s is gone", filepath.Base(path))
	}
	return ns, nil
}

// about is what network.json holds.
type about struct {
	Version    int   `json:"version"`
	Meta       Meta  `json:"meta"`
	Generation int64 `json:"generation"`
	Policy     Spec  `json:"policy"`
}

const aboutVersion = 1

// begin writes a new network's files and returns its first state.
func (h home) begin(meta Meta, p *Policy) (*state, error) {
	table, err := createNames(h.table())
	if err != nil {
		return nil, stepError("making table of names", err)
	}
	st := &state{id: h.id, meta: meta, policy: p, generation: 1, names: table, journal: &journal{}, answers: &answers{}}
	if err := table.list(p.exact); err != nil {
		table.close()
		return nil, err
	}
	if err := h.save(st); err != nil {
		table.close()
		return nil, err
	}
	return st, nil
}

// save replaces network.json, wholly or not at all. It is not synced: after a
// crash of the machine there is no network to describe.
func (h home) save(st *state) error {
	data, err := json.Marshal(about{aboutVersion, st.meta, st.generation, st.policy.spec})
	if err != nil {
		return stepError("writing network policy", err)
	}
	return stepError("writing network policy", durable.WriteFile(h.about(), data, 0o600, durable.Process))
}

// read reads what save wrote. The state has no table of names.
func (h home) read() (*state, error) {
	data, err := os.ReadFile(h.about())
	if err != nil {
		return nil, stepError("reading network policy", err)
	}
	var a about
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, stepError("reading network policy", err)
	}
	if a.Version != aboutVersion {
		return nil, fmt.Errorf("reading network policy: unknown version %d", a.Version)
	}
	p, err := Compile(a.Policy)
	if err != nil {
		return nil, stepError("reading network policy", err)
	}
	return &state{id: h.id, meta: a.Meta, policy: p, generation: a.Generation, journal: &journal{}, answers: &answers{}}, nil
}

// load reads what begin and save wrote, the table of names too.
func (h home) load() (*state, error) {
	st, err := h.read()
	if err != nil {
		return nil, err
	}
	if st.names, err = openNames(h.table()); err != nil {
		return nil, stepError("reading table of names", err)
	}
	// All there already, but for an Update that broke off or found the network
	// suspended.
	if err := st.names.list(st.policy.exact); err != nil {
		st.names.close()
		return nil, err
	}
	return st, nil
}

// suspended tells whether the network has no namespaces.
func (h home) suspended() (bool, error) {
	for _, path := range []string{h.runtime(), h.gateway()} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

// release lets the two namespaces go, in whatever state they are.
func (h home) release() error {
	for _, path := range []string{h.runtime(), h.gateway()} {
		if err := unmount(path); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// remove takes everything away, in whatever state it is.
func (h home) remove() error {
	if err := h.release(); err != nil {
		return err
	}
	return os.RemoveAll(h.path)
}

// unmount takes all mounts off a path; there may be none, and no such path.
func unmount(path string) error {
	for {
		mounted, err := isMount(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && !mounted {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

func isMount(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
