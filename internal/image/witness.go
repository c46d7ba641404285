package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// witness is what a manager told about its downloads before any package code
// ran in its builder: which files, with which digests. What is told later is
// not believed, because then it may be package code that tells it.
type witness struct {
	files map[string][]string // by file; the meaning of both is the manager's
	code  bool                // package code ran
	// installed is the manager's listing afterwards, if it gives one; like every
	// listing it comes out of a sandbox.
	installed []installed
}

// hear reads what a manager told on its channel.
func (w *witness) hear(told []byte) {
	lines := bufio.NewScanner(bytes.NewReader(told))
	lines.Buffer(nil, 32<<20)
	for lines.Scan() {
		var m struct {
			Files     map[string][]string `json:"files"`
			Code      bool                `json:"code"`
			Installed []struct {
				Name, Version string
				Top, New      bool
			} `json:"installed"`
		}
		if sum, name, ok := strings.Cut(lines.Text(), "  "); ok && !w.code && layerKey.MatchString(sum) { // as sha256sum prints it
			if w.files == nil {
				w.files = map[string][]string{}
			}
			w.files[path.Base(name)] = []string{sum}
			continue
		}
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			continue
		}
		if m.Files != nil && !w.code && w.files == nil {
			w.files = m.Files
		}
		w.code = w.code || m.Code
		if m.Installed != nil {
			w.installed = []installed{}
		}
		for _, p := range m.Installed {
			one := listed(p.Name, p.Version, "")
			one.top, one.fresh = p.Top, p.New
			w.installed = append(w.installed, one)
		}
	}
	// Directories have no order; what was listed stands before what came with it.
	slices.SortFunc(w.installed, func(a, b installed) int {
		if a.id() == b.id() && a.top != b.top {
			if a.top {
				return -1
			}
			return 1
		}
		return strings.Compare(a.id(), b.id())
	})
}

// plainName reports whether a name out of a sandbox is one file's, and nothing else.
func plainName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) < 250 && !strings.ContainsAny(name, "/\x00")
}

// scratchPath is a path in the scratch space, relative to the root.
func scratchPath(elem ...string) string {
	return strings.TrimPrefix(path.Join(append([]string{scratchDir}, elem...)...), "/")
}

// pipWanted are the archives that pip downloaded, as entries of its HTTP cache:
// pip looks there by address and compares the content with the digest that the
// index states for the address.
func pipWanted(w *witness, _ *os.Root) []wanted {
	var out []wanted
	for name, f := range w.files {
		if !plainName(name) || len(f) != 2 || !layerKey.MatchString(f[1]) {
			continue
		}
		u, err := url.Parse(f[0])
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Host == "" {
			continue
		}
		sum := sha256.Sum224([]byte(f[0]))
		key := hex.EncodeToString(sum[:])
		at := scratchPath("pip", "http-v2", key[0:1], key[1:2], key[2:3], key[3:4], key[4:5], key)
		out = append(out, wanted{path: at + ".body", from: scratchPath("keep", name), sha256: f[1]}, wanted{path: at, content: pipEntry(time.Now())})
	}
	return out
}

// pipEntry is the head of an entry of pip's HTTP cache, in its format: a mark
// and a msgpack map. A pip that has another format takes no notice of it.
func pipEntry(now time.Time) []byte {
	var b bytes.Buffer
	str := func(s string) {
		if len(s) < 32 {
			b.WriteByte(0xa0 | byte(len(s)))
		} else {
			b.Write([]byte{0xd9, byte(len(s))})
		}
		b.WriteString(s)
	}
	b.WriteString("cc=4,")
	b.WriteByte(0x82) // a map of two
	str("response")
	b.WriteByte(0x86)
	str("body")
	b.Write([]byte{0xc4, 0})
	str("headers")
	b.WriteByte(0x82)
	str("date")
	str(now.UTC().Format("Mon, 02 Jan 2006 15:04:05") + " GMT")
	str("cache-control")
	str("max-age=315360000")
	str("status")
	b.Write([]byte{0xcc, 200})
	str("version")
	b.WriteByte(11)
	str("reason")
	str("OK")
	str("decode_content")
	b.WriteByte(0xc2) // false
	str("vary")
	b.WriteByte(0x80)
	return b.Bytes()
}

var npmIntegrity = regexp.MustCompile(`sha512-([A-Za-z0-9+/]{86}==)`)

// npmWanted are the files of npm's content store whose digest one of the
// registry's documents states. Those documents are in the store too.
func npmWanted(w *witness, tree *os.Root) []wanted {
	stated := map[string]bool{}
	at := func(digest string) string {
		return scratchPath("npm", "_cacache", "content-v2", "sha512", digest[:2], digest[2:4], digest[4:])
	}
	good := func(digest string) bool {
		raw, err := hex.DecodeString(digest)
		return err == nil && len(raw) == 64 && strings.ToLower(digest) == digest
	}
	for digest := range w.files {
		if !good(digest) {
			continue
		}
		text := readTree(tree, at(digest), 64<<20)
		if len(text) == 0 || text[0] != '{' {
			continue // no document
		}
		if sum := sha512.Sum512(text); hex.EncodeToString(sum[:]) == digest {
			for _, m := range npmIntegrity.FindAllSubmatch(text, -1) {
				if raw, err := base64.StdEncoding.DecodeString(string(m[1])); err == nil {
					stated[hex.EncodeToString(raw)] = true
				}
			}
		}
	}
	var out []wanted
	for digest := range w.files {
		if good(digest) && stated[digest] {
			out = append(out, wanted{path: at(digest), from: at(digest), sha512: digest})
		}
	}
	return out
}

// readTree reads a regular file of a builder's tree; nil if it cannot be read or
// is larger than limit.
func readTree(tree *os.Root, name string, limit int64) []byte {
	f, err := tree.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > limit {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil
	}
	return text
}

// aptWanted are the archives that apt was about to install. It had compared
// what it downloaded with the signed lists.
func aptWanted(w *witness, _ *os.Root) []wanted {
	var out []wanted
	for name, f := range w.files {
		if plainName(name) && strings.HasSuffix(name, ".deb") && len(f) == 1 && layerKey.MatchString(f[0]) {
			at := scratchPath("archives", name)
			out = append(out, wanted{path: at, from: at, sha256: f[0]})
		}
	}
	return out
}

// cargoWanted are the crates that the lock files name, wherever cargo keeps
// those of their registry.
func cargoWanted(w *witness, tree *os.Root) []wanted {
	var out []wanted
	cache := scratchPath("home", ".cargo", "registry", "cache")
	registries, err := fs.ReadDir(tree.FS(), cache)
	if err != nil {
		return nil
	}
	for name, f := range w.files {
		if !plainName(name) || len(f) != 1 || !layerKey.MatchString(f[0]) {
			continue
		}
		for _, r := range registries {
			at := path.Join(cache, r.Name(), name)
			out = append(out, wanted{path: at, from: at, sha256: f[0]})
		}
	}
	return out
}

// gemWanted are the gems of a source whose index states digests.
func gemWanted(w *witness, _ *os.Root) []wanted {
	var out []wanted
	for name, f := range w.files {
		if plainName(name) && len(f) == 2 && path.IsAbs(f[0]) && layerKey.MatchString(f[1]) {
			out = append(out, wanted{path: scratchPath("gems", name), from: strings.TrimPrefix(path.Clean(f[0]), "/"), sha256: f[1]})
		}
	}
	return out
}

var goRecord = regexp.MustCompile(`(?m)^([^ \n]+) (v[^ \n]+?)(/go\.mod)? (h1:[A-Za-z0-9+/]{43}=)$`)

// goWanted are the modules that the checksum database knows: go leaves its
// records beside them, and no code of a package runs during go install.
func goWanted(_ *witness, tree *os.Root) []wanted {
	var out []wanted
	cache := scratchPath("go", "pkg", "mod", "cache", "download")
	_ = fs.WalkDir(tree.FS(), path.Join(cache, "sumdb"), func(at string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // what cannot be read is not kept
		}
		_, lookup, ok := strings.Cut(at, "/lookup/")
		i := strings.LastIndexByte(lookup, '@')
		if !ok || i < 0 || len(out) > 100_000 {
			return nil
		}
		mod := path.Join(cache, lookup[:i], "@v", lookup[i+1:]) // both are escaped as file names already
		for _, m := range goRecord.FindAllStringSubmatch(string(readTree(tree, at, 1<<20)), -1) {
			ext := ".zip"
			if m[3] != "" {
				ext = ".mod"
			}
			out = append(out, wanted{path: mod + ext, from: mod + ext, gosum: m[4], gomod: m[3] != ""})
		}
		return nil
	})
	return out
}

// stale are the words of managers that refuse a file of the cache: the index
// states another digest than it did.
var stale = regexp.MustCompile(`(?i)hash(es)? (sum )?mismatch|do not match the hashes|checksum mismatch|EINTEGRITY|integrity check|failed to verify the checksum|is not a (debian|valid)|corrupt|unexpected size`)

func saysStale(lines []string) bool {
	for _, l := range lines {
		if stale.MatchString(l) {
			return true
		}
	}
	return false
}

// lockFiles reads the crates of cargo's lock files: file name and checksum.
func lockFiles(out []byte) map[string][]string {
	files := map[string][]string{}
	name, version := "", ""
	for line := range strings.Lines(string(out)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		value = strings.Trim(value, `"`)
		switch {
		case !ok:
			name, version = "", ""
		case key == "name":
			name = value
		case key == "version":
			version = value
		case key == "checksum" && name != "" && version != "":
			files[fmt.Sprintf("%s-%s.crate", name, version)] = []string{value}
		}
	}
	return files
}
