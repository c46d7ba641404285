package control

import (
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/atoll-run/atoll/api"
)

// The limits of agents' and sessions' metadata. Environments have none but the
// size of the whole resource.
const (
	maxPairs     = 16
	maxKeyLen    = 64
	maxValueLen  = 512
	maxIDLen     = 128
	maxVersion   = 1<<31 - 1
	microseconds = time.Microsecond
)

// badField is a fault about one field of a request.
func badField(path, format string, args ...any) *Fault {
	return &Fault{Kind: Invalid, Message: path + ": " + fmt.Sprintf(format, args...)}
}

// unsupported refuses a field whose machinery this server does not have.
func unsupported(path string) *Fault {
	return badField(path, "not supported yet by this server")
}

// checkLength holds a string between two numbers of characters.
func checkLength(path, s string, least, most int) error {
	n := utf8.RuneCountInString(s)
	switch {
	case n < least:
		return badField(path, "String should have at least %d character%s", least, plural(least))
	case n > most:
		return badField(path, "String should have at most %d characters", most)
	}
	return nil
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// checkOptional is checkLength for a field that may be absent or null.
func checkOptional(path string, s api.Opt[string], least, most int) error {
	if !s.Given() {
		return nil
	}
	return checkLength(path, s.Value, least, most)
}

// checkMetadata holds the limits of agents' and sessions' metadata.
func checkMetadata(m map[string]string) error {
	if len(m) > maxPairs {
		return badField("metadata", "Dictionary should have at most %d items", maxPairs)
	}
	for _, key := range sortedKeys(m) {
		if err := checkLength("metadata key", key, 1, maxKeyLen); err != nil {
			return err
		}
		if err := checkLength("metadata."+key, m[key], 0, maxValueLen); err != nil {
			return err
		}
	}
	return nil
}

// mergeMetadata applies a patch: a string sets a key, null deletes it, and so
// does "" where the resource says so. The stored map is not changed.
func mergeMetadata(stored map[string]string, patch map[string]api.Opt[string], emptyDeletes bool) map[string]string {
	merged := make(map[string]string, len(stored)+len(patch))
	for key, value := range stored {
		merged[key] = value
	}
	for key, value := range patch {
		if value.Null || emptyDeletes && value.Value == "" {
			delete(merged, key)
		} else {
			merged[key] = value.Value
		}
	}
	return merged
}

// checkVersion holds a version number that a caller gave.
func checkVersion(path string, version api.Opt[int]) error {
	switch {
	case !version.Set:
		return nil
	case version.Null:
		return badField(path, "Input should be a valid integer")
	case version.Value < 1:
		return badField(path, "Input should be greater than or equal to 1")
	case version.Value > maxVersion:
		return badField(path, "Input should be less than or equal to %d", maxVersion)
	}
	return nil
}

// orNull is a description or a system prompt: what was given, or null.
func orNull(s api.Opt[string]) *string {
	if !s.Given() {
		return nil
	}
	return &s.Value
}

// clock tells the time as records keep it.
func (s *Service) clock() time.Time { return s.now().UTC().Truncate(microseconds) }

// first is the first of joined errors: a reply names one thing at a time.
func first(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()[0]
	}
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
