package httpapi

import (
	"maps"
	"slices"
)

// WholeBodies is what the admin socket reads bodies with.
var WholeBodies = wholeBodies

// Routes are the paths of the API with the methods that each answers, HEAD aside.
func Routes() map[string][]string {
	out := map[string][]string{}
	s := &server{sandboxes: struct{ Sandboxes }{}}
	for path, byMethod := range s.routes() {
		out[path] = slices.Sorted(maps.Keys(byMethod))
	}
	return out
}
