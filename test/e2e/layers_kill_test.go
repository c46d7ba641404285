package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// inInstall is what the log says while each manager is at work.
var inInstall = []struct{ manager, says string }{
	{"apt", "apt: Unpacking figlet"}, {"cargo", "cargo:    Compiling data-encoding"}, {"gem", "gem: $ gem install"},
	{"go", "go: $ go install"}, {"npm", "npm: $ npm install"}, {"pip", "pip: $ python3 -m pip install"},
}

// checkKilledBuild builds once more what another server has built, while it is
// killed in the middle of every manager's install.
func checkKilledBuild(t *testing.T, m *mirror, undisturbed *server, want build) {
	s := newServer(t, m.config(""))
	env, agent := s.environment(mirrored(allManagers())), s.agent()
	for i, in := range inInstall {
		var log string
		again := 0
		waitFor(t, 5*time.Minute, in.manager+" to be at work", func() bool {
			var b build
			s.call("GET", "/atoll/v1/environments/"+env+"/build", nil, &b)
			if b.Status == "failed" {
				s.again(agent, env, b, &again)
			}
			s.try("GET", "/atoll/v1/environments/"+env+"/build/log", nil, &log)
			return strings.Contains(log, in.says)
		})
		s.Stop(syscall.SIGKILL)
		if n := len(committed(t, s)); n != i {
			t.Fatalf("killed in the install of %s: %d layers are there, want %d\n%s", in.manager, n, i, log)
		}
		s.Start()
	}
	b := s.builtAtLast(agent, env)
	if len(b.Layers) != len(want.Layers) {
		t.Fatalf("build after six kills: %+v", b)
	}
	id := s.session(agent, env)
	s.checkUsable(id)
	s.checkVersions(id, b)
	for i, l := range b.Layers {
		if l.Key != want.Layers[i].Key {
			t.Errorf("%s has another key", l.Manager)
			continue
		}
		if diff := cmp.Diff(tree(t, undisturbed, l.Key), tree(t, s, l.Key)); diff != "" {
			t.Errorf("the %s layer differs from an undisturbed one (-undisturbed +killed):\n%s", l.Manager, diff)
		}
		if diff := cmp.Diff(want.Layers[i].Packages, l.Packages); diff != "" {
			t.Errorf("versions of %s (-undisturbed +killed):\n%s", l.Manager, diff)
		}
	}
	if keys := committed(t, s); len(keys) != len(b.Layers) {
		t.Errorf("the layer store has more than the layers: %v", keys)
	}
	for _, rest := range []string{"layers/.scratch", "layers/.trash"} {
		if left, err := os.ReadDir(filepath.Join(s.Dir, rest)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v %v", rest, left, err)
		}
	}
}

var layerName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// committed lists the layers in a server's store.
func committed(t *testing.T, s *server) (keys []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Dir, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if layerName.MatchString(e.Name()) {
			keys = append(keys, e.Name())
		}
	}
	return keys
}

// tree describes every file of a layer with all that a session can see of it,
// times aside.
func tree(t *testing.T, s *server, key string) map[string]string {
	t.Helper()
	dir := filepath.Join(s.Dir, "layers", key, "tree")
	out := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		attrs, err := attributes(path)
		if err != nil {
			return err
		}
		text += attrs
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		case e.Type().IsRegular():
			if other, ok := first[st.Ino]; ok {
				text += " = " + other
				break
			}
			if st.Nlink > 1 {
				first[st.Ino] = rel
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d bytes %x", len(content), sha256.Sum256(content))
		}
		out[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attributes lists extended attributes with their values.
func attributes(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", err
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	text := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return text, nil
}
