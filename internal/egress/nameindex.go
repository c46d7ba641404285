package egress

import "strings"

// nameIndex finds what was said of a name, and of all names below one, by its
// labels.
type nameIndex[T any] struct {
	exact    map[string]T // canonical host → what is said of it
	wildcard map[string]T // canonical base → what is said of all below it
}

func newNameIndex[T any]() nameIndex[T] { return nameIndex[T]{map[string]T{}, map[string]T{}} }

// of is the half of the index that an entry belongs to.
func (x nameIndex[T]) of(e Entry) map[string]T {
	if e.Wildcard {
		return x.wildcard
	}
	return x.exact
}

// each calls f with what is said of the host itself and then as above does.
func (x nameIndex[T]) each(host Host, f func(T) bool) bool {
	if v, ok := x.exact[host.name]; ok && !f(v) {
		return false
	}
	return x.above(host, f)
}

// above calls f with what is said of all names below each name above the host,
// walking label boundaries, until f returns false. It tells whether f never did.
func (x nameIndex[T]) above(host Host, f func(T) bool) bool {
	for name := host.name; ; {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return true
		}
		if v, ok := x.wildcard[parent]; ok && !f(v) {
			return false
		}
		name = parent
	}
}

// blockList is the operator's list of names that no policy opens.
type blockList struct{ nameIndex[bool] }

func (b blockList) has(host Host) bool { return !b.each(host, func(bool) bool { return false }) }
