package api

import "testing"

func TestMediaTypeOf(t *testing.T) {
	for data, want := range map[string]string{
		"":                                "",
		"\x89PNG":                         "",
		"\x89PNG\r\n\x1a\n\x00":           "image/png",
		"\xff\xd8\xff\xe0":                "image/jpeg",
		"GIF89a":                          "image/gif",
		"RIFF\x00\x00\x00\x00WEBPVP8 ":    "image/webp",
		"RIFF\x00\x00\x00\x00WAVE":        "",
		"RIFFWEBP":                        "",
		"%PDF-1.7":                        "application/pdf",
		"\xef\xbb\xbf\n%PDF-1.4":          "application/pdf",
		"<svg xmlns='…'></svg>":           "",
		"<!doctype html><title>not found": "",
	} {
		if got := MediaTypeOf([]byte(data)); got != want {
			t.Errorf("%q is %q, want %q", data, got, want)
		}
	}
}
