package egress

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestNamesSurviveReopening(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "names")
	n, err := createNames(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.list([]Host{mustHost(t, "a.example"), mustHost(t, "b.example")}); err != nil {
		t.Fatal(err)
	}
	c, err := n.address(mustHost(t, "c.example"), 10)
	if err != nil {
		t.Fatal(err)
	}
	n.close()
	if _, err := n.address(mustHost(t, "d.example"), 10); !errors.Is(err, errNamesLost) {
		t.Errorf("a closed table gave an address: %v", err)
	}
	n, err = openNames(path)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if err := n.list([]Host{mustHost(t, "b.example"), mustHost(t, "e.example")}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a.example": "198.18.1.0", "b.example": "198.18.1.1", "c.example": c.String(), "e.example": "198.18.1.3"} {
		if got, err := n.address(mustHost(t, name), 10); err != nil || got.String() != want {
			t.Errorf("%s: %s %v, want %s", name, got, err, want)
		}
		if h, ok := n.host(netip.MustParseAddr(want)); !ok || h.name != name {
			t.Errorf("%s: %s", want, h)
		}
	}
	for _, a := range []string{"198.18.0.1", "198.18.0.255", "198.18.1.4", "198.19.255.255", "10.0.0.1", "::1"} {
		if h, ok := n.host(netip.MustParseAddr(a)); ok {
			t.Errorf("%s means %s", a, h)
		}
	}
	if a := syntheticAddr(syntheticLast - syntheticFirst); a.String() != "198.19.255.255" {
		t.Errorf("last address %s", a)
	}
}

func TestNamesRefuseDamage(t *testing.T) {
	t.Parallel()
	a, b := mustHost(t, "a.example"), mustHost(t, "b.example")
	good := namesHeader + nameLine(syntheticAddr(0), a) + nameLine(syntheticAddr(1), b)
	if _, err := parseNames([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"empty":         "",
		"header":        "atoll names 2\n",
		"cut":           good[:len(good)-1],
		"cut more":      good[:len(good)-20],
		"gap":           namesHeader + nameLine(syntheticAddr(1), b),
		"wrong order":   namesHeader + nameLine(syntheticAddr(1), b) + nameLine(syntheticAddr(0), a),
		"twice":         namesHeader + nameLine(syntheticAddr(0), a) + nameLine(syntheticAddr(1), a),
		"checksum":      namesHeader + "198.18.1.0 a.example 00000000\n",
		"not canonical": namesHeader + "198.18.1.0 A.example 00000000\n",
		"blank line":    good + "\n",
	} {
		if _, err := parseNames([]byte(data)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A line that cannot be written is not given out, and leaves no half line.
func TestNamesFullDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "names")
	n, err := createNames(path)
	if err != nil {
		t.Fatal(err)
	}
	n.close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	n.file = full
	if a, err := n.address(mustHost(t, "a.example"), 10); err == nil {
		t.Errorf("gave %s", a)
	}
	if _, ok := n.host(syntheticAddr(0)); ok {
		t.Error("the address means something")
	}
}
