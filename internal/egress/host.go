package egress

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/idna"
)

// Host is a host name in canonical form. Only [Canonical] makes one, so two
// equal hosts are the same name, and whatever holds a Host may compare it,
// look it up and resolve it without another parser in between. The zero value
// is no host.
type Host struct{ name string }

// String returns the canonical name: lower case, no trailing dot.
func (h Host) String() string { return h.name }

// IsZero tells whether h is no host.
func (h Host) IsZero() bool { return h.name == "" }

// MarshalText returns the canonical name.
func (h Host) MarshalText() ([]byte, error) { return []byte(h.name), nil }

// UnmarshalText takes a name as [Canonical] does.
func (h *Host) UnmarshalText(text []byte) (err error) {
	*h, err = Canonical(string(text))
	return err
}

const (
	maxName  = 253
	maxLabel = 63
)

// Canonical returns the canonical form of a host name as it stands on the wire
// (ASCII only). It refuses instead of cleaning: any byte outside letters,
// digits, "-", "_" and ".", empty and overlong labels, and every form that an
// IPv4 parser might take for an address. One trailing dot is stripped and
// letters are lowered; Canonical of its own result is that result. Errors hold
// no byte of the input.
func Canonical(raw string) (Host, error) {
	if raw == "" {
		return Host{}, errors.New("the name is empty")
	}
	if len(raw) > maxName+1 {
		return Host{}, fmt.Errorf("the name is longer than %d bytes", maxName)
	}
	for i := 0; i < len(raw); i++ {
		if !nameByte(raw[i]) {
			return Host{}, errors.New("the name has a character outside letters, digits, '-', '_' and '.'")
		}
	}
	name := strings.ToLower(strings.TrimSuffix(raw, "."))
	if name == "" {
		return Host{}, errors.New("the name is empty")
	}
	if len(name) > maxName {
		return Host{}, fmt.Errorf("the name is longer than %d bytes", maxName)
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label); err != nil {
			return Host{}, err
		}
		last = label
	}
	if numericLabel(last) {
		return Host{}, errors.New("the name ends like an IP address")
	}
	return Host{name}, nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("the name has an empty label")
	case len(label) > maxLabel:
		return fmt.Errorf("a label is longer than %d bytes", maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return errors.New("a label begins or ends with a hyphen")
	}
	// Hyphens in places three and four are fine (large CDNs use them) unless
	// the label claims to be an encoded one: then it has to be one, or two
	// spellings would name what a browser shows as one host.
	if strings.HasPrefix(label, "xn--") {
		decoded, err := idna.Punycode.ToUnicode(label)
		if err != nil || decoded == label {
			return errors.New("a label is not valid punycode")
		}
		if again, err := idna.Punycode.ToASCII(decoded); err != nil || again != label {
			return errors.New("a label is not valid punycode")
		}
	}
	return nil
}

// numericLabel tells whether a name with this last label could be read as an
// IPv4 address by some parser: decimal, octal, hexadecimal, short forms.
func numericLabel(label string) bool {
	digits, hex := true, strings.HasPrefix(label, "0x")
	for i := 0; i < len(label); i++ {
		c := label[i]
		isDigit := '0' <= c && c <= '9'
		digits = digits && isDigit
		if i >= 2 && !isDigit && (c < 'a' || c > 'f') {
			hex = false
		}
	}
	return digits || hex
}
