package toolset

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
)

// propertyName is what the Messages API takes as the name of a property of a
// tool's input.
var propertyName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`)

// combinators are what the Messages API does not take at the top of a schema.
var combinators = [...]string{"anyOf", "oneOf", "allOf"}

// offered makes the schema of a server's tool one that the Messages API takes: it
// refuses a request as a whole for one tool of many. What alternatives at the top
// say of properties is told without the alternatives, and optional properties
// that cannot be named are left out; the server checks the input all the same. A
// schema that cannot be offered so is an error.
func offered(schema json.RawMessage) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	var kind string
	if json.Unmarshal(schema, &members) != nil || json.Unmarshal(members["type"], &kind) != nil || kind != "object" {
		return nil, errors.New("it is not the schema of an object")
	}
	properties := map[string]json.RawMessage{}
	if text := members["properties"]; len(text) > 0 && json.Unmarshal(text, &properties) != nil {
		return nil, errors.New("its properties are not an object")
	}
	changed := false
	for _, name := range combinators {
		if text, there := members[name]; there {
			fold(text, properties)
			delete(members, name)
			changed = true
		}
	}
	var required []string
	if text := members["required"]; len(text) > 0 && json.Unmarshal(text, &required) != nil {
		return nil, errors.New("what it requires is not a list of names")
	}
	for name := range properties {
		switch {
		case propertyName.MatchString(name):
		case slices.Contains(required, name):
			return nil, errors.New("it requires a property whose name cannot be offered")
		default:
			delete(properties, name)
			changed = true
		}
	}
	if !changed {
		return schema, nil
	}
	var err error
	if members["properties"], err = json.Marshal(properties); err != nil {
		return nil, err
	}
	return json.Marshal(members)
}

// fold adds the properties of alternatives to those that there are.
func fold(alternatives json.RawMessage, properties map[string]json.RawMessage) {
	var branches []struct{ Properties map[string]json.RawMessage }
	if json.Unmarshal(alternatives, &branches) != nil {
		return // there is nothing to tell
	}
	for _, b := range branches {
		for name, schema := range b.Properties {
			if _, there := properties[name]; !there {
				properties[name] = schema
			}
		}
	}
}
