package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// binder is a type that reads itself from a value: Opt and the unions.
type binder interface {
	bind(path string, n *node) error
}

// bindValue reads n into what into points to.
func bindValue(path string, n *node, into any) error {
	if b, ok := into.(binder); ok {
		return b.bind(path, n)
	}
	return bindReflect(path, n, reflect.ValueOf(into).Elem())
}

var rawMessage = reflect.TypeFor[json.RawMessage]()

func bindReflect(path string, n *node, v reflect.Value) error {
	if b, ok := v.Addr().Interface().(binder); ok {
		return b.bind(path, n)
	}
	if v.Type() == rawMessage {
		v.SetBytes(n.raw())
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		if n.kind != kindString {
			return fieldErrorf(path, "Input should be a valid string")
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.kind != kindBool {
			return fieldErrorf(path, "Input should be a valid boolean")
		}
		v.SetBool(n.flag)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.text, 10, 64)
		if n.kind != kindNumber || err != nil {
			return fieldErrorf(path, "Input should be a valid integer")
		}
		v.SetInt(i)
	case reflect.Slice:
		return bindList(path, n, v)
	case reflect.Map:
		return bindMap(path, n, v)
	case reflect.Struct:
		if n.kind != kindObject {
			return fieldErrorf(path, "Input should be a valid dictionary")
		}
		return bindStruct(path, n, v)
	default:
		panic("api: no way to read a " + v.Type().String())
	}
	return nil
}

func bindList(path string, n *node, v reflect.Value) error {
	if n.kind != kindList {
		return fieldErrorf(path, "Input should be a valid list")
	}
	list := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		if err := bindReflect(index(path, i), item, list.Index(i)); err != nil {
			return err
		}
	}
	v.Set(list)
	return nil
}

func bindMap(path string, n *node, v reflect.Value) error {
	if n.kind != kindObject {
		return fieldErrorf(path, "Input should be a valid dictionary")
	}
	m := reflect.MakeMapWithSize(v.Type(), len(n.fields))
	for _, f := range n.fields {
		value := reflect.New(v.Type().Elem()).Elem()
		if err := bindReflect(join(path, f.name), f.value, value); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(f.name), value)
	}
	v.Set(m)
	return nil
}

// bindStruct reads an object: unknown fields first in the order of the body,
// then missing ones in the order of the type. A field is required when its tag
// says api:"required".
func bindStruct(path string, n *node, v reflect.Value) error {
	t := v.Type()
	known := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			known[name] = i
		}
	}
	for _, f := range n.fields {
		i, ok := known[f.name]
		if !ok {
			return fieldErrorf(join(path, f.name), "Extra inputs are not permitted")
		}
		if err := bindReflect(join(path, f.name), f.value, v.Field(i)); err != nil {
			return err
		}
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if t.Field(i).Tag.Get("api") == "required" && n.field(name) == nil {
			return fieldErrorf(join(path, name), "Field required")
		}
	}
	return nil
}

// bindObject reads an object into the struct that into points to, past its own
// bind method: unions call it once they know which arm they have.
func bindObject(path string, n *node, into any) error {
	return bindStruct(path, n, reflect.ValueOf(into).Elem())
}

// bindArm reads the type field of a union's object and checks that it is one
// of names.
func bindArm(path string, n *node, names ...string) (string, error) {
	if n.kind != kindObject {
		return "", fieldErrorf(path, "Input should be a valid dictionary")
	}
	t := n.field("type")
	if t == nil {
		return "", fieldErrorf(join(path, "type"), "Field required")
	}
	if t.kind != kindString {
		return "", fieldErrorf(join(path, "type"), "Input should be a valid string")
	}
	for _, name := range names {
		if t.text == name {
			return name, nil
		}
	}
	return "", fieldErrorf(join(path, "type"), "Input should be %s", oneOf(names))
}

// oneOf is "'a', 'b' or 'c'".
func oneOf(names []string) string {
	var b strings.Builder
	for i, name := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString("'" + name + "'")
	}
	return b.String()
}

// enum checks that a string is one of a list.
func enum(path, value string, names ...string) error {
	for _, name := range names {
		if value == name {
			return nil
		}
	}
	return fieldErrorf(path, "Input should be %s", oneOf(names))
}

// raw writes the value again, compact, with the fields in their order.
func (n *node) raw() []byte {
	var b bytes.Buffer
	n.write(&b)
	return b.Bytes()
}

func (n *node) write(b *bytes.Buffer) {
	switch n.kind {
	case kindNull:
		b.WriteString("null")
	case kindBool:
		b.WriteString(strconv.FormatBool(n.flag))
	case kindNumber:
		b.WriteString(n.text)
	case kindString:
		writeString(b, n.text)
	case kindList:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			item.write(b)
		}
		b.WriteByte(']')
	case kindObject:
		b.WriteByte('{')
		for i, f := range n.fields {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, f.name)
			b.WriteByte(':')
			f.value.write(b)
		}
		b.WriteByte('}')
	}
}

func writeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes
	b.Truncate(b.Len() - 1)
}
