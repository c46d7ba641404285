package image

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strconv"
	"time"
)

// layerFormat is part of every key: another layout of layers gets other keys.
const layerFormat = "atoll-layer-1"

// ErrNoLayer says that the store has no complete layer of that key.
var ErrNoLayer = errors.New("no such layer")

// PackageVersion is one package that a layer brought, as its manager reports it.
type PackageVersion struct {
	// Name is the manager's name for the package.
	Name string `json:"name"`
	// Version is as the manager writes it.
	Version string `json:"version"`
	// Requested tells what was listed from what came with it.
	Requested bool `json:"requested"`
	// Detail is the architecture for apt, the module and its checksum for go; else empty.
	Detail string `json:"detail,omitempty"`
	// present tells that it was there before the layer: it was listed, and there
	// was nothing to install for it.
	present bool
}

// Layer is one committed layer and what its manifest records. A layer never
// changes once it is in the store.
type Layer struct {
	// Key names the layer in the store: a hash of all that it was built of.
	Key    string `json:"key"`
	Parent string `json:"parent"` // key of the layer below, or empty above the base
	// Manager is whose packages it holds.
	Manager string   `json:"manager"`
	Entries []string `json:"entries"` // the normal list
	Base    string   `json:"base"`    // digest of the template version
	// Arch is Go's name of the architecture.
	Arch string `json:"arch"`
	// Recipe is the version of the manager's recipe that made it.
	Recipe int    `json:"recipe"`
	Family string `json:"family"` // the key without the epoch
	// Epoch is the number in the key that whoever wants newer packages raises.
	Epoch  int64 `json:"epoch"`
	Pinned bool  `json:"pinned"` // every entry names exactly one release
	// Digest is a hash of the tree without times: paths, modes, owners,
	// contents, links, extended attributes.
	Digest string `json:"digest"`
	// LogDigest is the SHA-256 of the install's log.
	LogDigest string `json:"log_digest"`
	// DigestFormat says how contents entered the digest: absent for layers of
	// old versions, 2 for those whose blocks of zeros count by their place.
	DigestFormat int   `json:"digest_format,omitempty"`
	SizeBytes    int64 `json:"size_bytes"` // bytes of file contents, hard links counted once, holes not
	// AllocatedBytes is what the tree takes on the disk, in whole blocks of
	// 4 KiB, and Inodes how many files, directories and links it has. Quotas
	// count both. Manifests of old versions lack them; the store measures then.
	AllocatedBytes int64 `json:"allocated_bytes,omitempty"`
	// Inodes counts files, directories and links.
	Inodes int64 `json:"inodes,omitempty"`
	// Files counts the regular files of the tree.
	Files int `json:"files"`
	// Versions are the packages that the layer added, by name.
	Versions []PackageVersion `json:"versions"`
	// CreatedAt is when it was committed.
	CreatedAt time.Time `json:"created_at"`
	// Took is how long it took to make the layer, in milliseconds.
	Took int64 `json:"took_ms"`

	// Dir is the read-only directory to mount. It is not in the manifest.
	Dir string `json:"-"`
	// Hit and Duration are set in a Result only: the layer was there already,
	// and how long this build waited for it.
	Hit bool `json:"-"`
	// Duration, of a Result, is how long this build waited for the layer.
	Duration time.Duration `json:"-"`
}

// Step is one layer that a package list needs.
type Step struct {
	// Manager is whose entries they are.
	Manager string
	Entries []string // the normal list
	// Recommends tells that apt installs what the entries recommend, too.
	Recommends bool
	// OfTemplate tells that the template lists the entries, not the environment.
	OfTemplate bool
	Parent     string // key of the step below, or empty
	Family     string // the key without the epoch
	// Epoch is part of the key.
	Epoch int64
	// Key is the key of the layer that the step makes.
	Key string
	// Pinned: every entry names exactly one release.
	Pinned bool
}

// plan turns package lists into the chain of layers that they need above base,
// in build order: those of the template's own packages are the lowest. An empty
// list makes no layer. The epoch function chooses the epoch of a step; nil means
// 0 for all.
func plan(base *Base, p Packages, generation int64, epoch func(Step) int64) []Step {
	steps := unplaced(base, p)
	parent := ""
	for i := range steps {
		steps[i].place(base, generation, parent)
		if epoch != nil {
			steps[i].setEpoch(epoch(steps[i]))
		}
		parent = steps[i].Key
	}
	return steps
}

// unplaced are the steps of a plan before they have a parent and a key: what the
// template lists, manager after manager, and then what p lists.
func unplaced(base *Base, p Packages) []Step {
	var steps []Step
	for i, packages := range []Packages{base.Packages, p} {
		for _, m := range managerOrder {
			if list := normalList(packages.List(m)); len(list) > 0 {
				steps = append(steps, Step{Manager: m, Entries: list, Recommends: m == "apt" && packages.AptRecommends, OfTemplate: i == 0})
			}
		}
	}
	return steps
}

// place gives a step its parent and its key of the first epoch. Another
// generation gets other keys; generation 0 gets those of versions that had none.
func (s *Step) place(base *Base, generation int64, parent string) {
	s.Parent, s.Pinned = parent, true
	fields := append([]string{layerFormat, strconv.Itoa(recipes[s.Manager].version), base.Digest, base.Arch, parent, s.Manager}, s.Entries...)
	if s.Recommends {
		fields = append([]string{"recommends"}, fields...)
	}
	if generation != 0 {
		fields = append([]string{"generation", strconv.FormatInt(generation, 10)}, fields...)
	}
	s.Family = hashFields(fields...)
	for _, e := range s.Entries {
		parsed, err := parseSpec(s.Manager, e)
		s.Pinned = s.Pinned && err == nil && parsed.pinned
	}
	s.setEpoch(0)
}

func (s *Step) setEpoch(epoch int64) {
	s.Epoch = epoch
	s.Key = hashFields(s.Family, strconv.FormatInt(epoch, 10))
}

// hashFields is SHA-256 over length-prefixed fields, so that no two lists of
// fields collide by joining.
func hashFields(fields ...string) string {
	h := sha256.New()
	for _, f := range fields {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
		h.Write([]byte(f))
	}
	return hex.EncodeToString(h.Sum(nil))
}
