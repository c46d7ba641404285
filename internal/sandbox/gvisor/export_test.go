package gvisor

// For the tests outside of the package.
var (
	IsHelper = isHelper
	NameOf   = nameOf
)
