package image

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The line that a refusal names is one that the configuration takes.
func TestRefusedPhraseIsConfiguration(t *testing.T) {
	t.Parallel()
	phrase := refusedPhrase("npm", []Contact{{Host: "192.0.2.1", Port: 80}, {Host: "files.example.com", Port: 443}, {Host: "files.example.com", Port: 80}, {Host: "more.example.com", Port: 8443}})
	_, line, ok := strings.Cut(phrase, "needs the line ")
	line, _, end := strings.Cut(line, ", and atoll reload")
	if !ok || !end {
		t.Fatal(phrase)
	}
	var c struct {
		Registries map[string]map[string][]string `yaml:"registries"`
	}
	if err := yaml.Unmarshal([]byte(line), &c); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	got, err := parseOverrides(c.Registries, func(string) bool { return false })
	if err != nil || len(got["*"]["npm"]) != 2 || got["*"]["npm"][1].Port != 8443 {
		t.Errorf("%s: %+v %v", line, got, err)
	}
	if !strings.Contains(phrase, "kept from 192.0.2.1, files.example.com, more.example.com:") {
		t.Error(phrase)
	}
	if phrase := refusedPhrase("pip", []Contact{{Host: "192.0.2.1", Port: 80}}); strings.Contains(phrase, "registries:") || !strings.Contains(phrase, "192.0.2.1") {
		t.Error(phrase)
	}
}
