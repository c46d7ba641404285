package api

import (
	"bytes"
	"slices"
)

// ImageTypes are the media types of images that a model takes, TypePDF that of
// documents that are not text.
var ImageTypes = [...]string{"image/jpeg", "image/png", "image/gif", "image/webp"}

// TypePDF is the media type of PDF.
const TypePDF = "application/pdf"

// MediaTypeOf tells by its first bytes whether data is an image or a PDF that a
// model takes, and of which type; empty for anything else. What a server or a
// client calls data is not to be relied on: a model's endpoint refuses a request
// with a block that is not what it says.
func MediaTypeOf(data []byte) string {
	starts := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case starts("\xff\xd8\xff"):
		return "image/jpeg"
	case starts("\x89PNG\r\n\x1a\n"):
		return "image/png"
	case starts("GIF87a"), starts("GIF89a"):
		return "image/gif"
	case starts("RIFF") && len(data) >= 12 && string(data[8:12]) == "WEBP":
		return "image/webp"
	case bytes.Contains(data[:min(len(data), 1024)], []byte("%PDF-")): // other bytes may come first
		return TypePDF
	}
	return ""
}

// IsImageType tells whether a media type is that of an image that a model takes.
func IsImageType(mediaType string) bool { return slices.Contains(ImageTypes[:], mediaType) }
