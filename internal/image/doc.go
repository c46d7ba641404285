// Package image makes what sandboxes start from: templates become base images,
// and the packages that an environment names become layers above them.
//
// It has four parts. [Templates] finds or makes a template's base: bootstrapped
// by Debian's own tools, or unpacked from an OCI image or a tarball, with the
// host's certificate authorities in it and the registries of its package
// managers learned by asking them. [Builder] turns package lists into layers,
// one for each manager, each installed in a sandbox that reaches the registries
// alone; a layer has a key made from all that it was built of, so equal
// beginnings are shared and nothing is installed twice. The layer store keeps
// layers by key, and [Downloads] what package managers downloaded, by digest.
//
// Everything that comes out of a sandbox is hostile: it is copied within the
// bounds that the builder's own disk has, and never believed. A base or a layer
// is renamed into place when it is whole and synced, so after a crash at any
// moment it is there or not there; scratch is removed at the next start. A
// failed install is a [Failure] in the package manager's words and is not kept:
// the next wish tries again. Servers may share a cache directory.
package image
