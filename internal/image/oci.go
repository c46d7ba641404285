package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func (o *OCI) validate() error {
	if _, err := o.reference(); err != nil {
		return fmt.Errorf("oci.ref: %w", err)
	}
	if _, err := o.platform("amd64"); err != nil {
		return fmt.Errorf("oci.platform: %w", err)
	}
	return nil
}

// reference parses the image's name. The registry must be said: none is assumed.
func (o *OCI) reference() (name.Reference, error) {
	var opts []name.Option
	if o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	host, _, ok := strings.Cut(o.Ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return nil, fmt.Errorf("%q must begin with a registry, as in registry.example.com/image:tag", o.Ref)
	}
	return name.ParseReference(o.Ref, append(opts, name.WithDefaultTag("latest"))...)
}

func (o *OCI) platform(arch string) (v1.Platform, error) {
	if o.Platform == "" {
		return v1.Platform{OS: "linux", Architecture: arch}, nil
	}
	p, err := v1.ParsePlatform(o.Platform)
	if err != nil {
		return v1.Platform{}, err
	}
	if p.OS != "linux" {
		return v1.Platform{}, fmt.Errorf("%q is not linux", o.Platform)
	}
	return *p, nil
}

// ociResult is what pulling told beside the tree.
type ociResult struct {
	digest  string
	config  v1.Config
	arch    string
	skipped []string
}

// pullOCI flattens the image into rootfs, an empty directory. Layers are kept in the cache.
func pullOCI(ctx context.Context, o *OCI, arch, cache, scratch, rootfs string, transport http.RoundTripper, p Progress) (ociResult, error) {
	ref, err := o.reference()
	if err != nil {
		return ociResult{}, fmt.Errorf("image reference: %w", err)
	}
	platform, err := o.platform(arch)
	if err != nil {
		return ociResult{}, fmt.Errorf("image platform: %w", err)
	}
	p.Stage("reading the image's manifest")
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithTransport(transport),
		remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return ociResult{}, fmt.Errorf("reading image %s: %w", o.Ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return ociResult{}, fmt.Errorf("reading image %s: %w", o.Ref, err)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		return ociResult{}, fmt.Errorf("reading image %s: %w", o.Ref, err)
	}
	if conf.Architecture != "" && conf.Architecture != platform.Architecture {
		return ociResult{}, fmt.Errorf("image %s is for %s, not %s", o.Ref, conf.Architecture, platform.Architecture)
	}
	layers, err := img.Layers()
	if err != nil {
		return ociResult{}, fmt.Errorf("reading image %s: %w", o.Ref, err)
	}
	if len(conf.RootFS.DiffIDs) != len(layers) {
		return ociResult{}, fmt.Errorf("image %s: the configuration names %d layers, the manifest %d", o.Ref, len(conf.RootFS.DiffIDs), len(layers))
	}
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return ociResult{}, fmt.Errorf("unpacking the image: %w", err)
	}
	defer root.Close()
	u := &unpacker{root: root, whiteouts: true}
	for i, l := range layers {
		if err := applyLayer(ctx, u, l, conf.RootFS.DiffIDs[i], cache, scratch, fmt.Sprintf("layer %d of %d", i+1, len(layers)), p); err != nil {
			return ociResult{}, fmt.Errorf("layer %d of image %s: %w", i+1, o.Ref, err)
		}
	}
	return ociResult{digest: digest.String(), config: conf.Config, arch: platform.Architecture, skipped: u.skipped}, nil
}

func applyLayer(ctx context.Context, u *unpacker, l v1.Layer, diffID v1.Hash, cache, scratch, what string, p Progress) error {
	digest, err := l.Digest()
	if err != nil {
		return err
	}
	if digest.Algorithm != "sha256" || diffID.Algorithm != "sha256" {
		return errors.New("only sha256 digests are supported")
	}
	p.Stage("downloading " + what)
	blob, err := fetchBlob(ctx, cache, scratch, digest.String(), p, func(context.Context) (io.ReadCloser, int64, error) {
		size, err := l.Size()
		if err != nil {
			return nil, 0, err
		}
		body, err := l.Compressed()
		return body, size, err
	})
	if err != nil {
		return err
	}
	p.Stage("unpacking " + what)
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := decompress(ctx, f)
	if err != nil {
		return err
	}
	defer plain.Close()
	sum := sha256.New()
	tee := io.TeeReader(plain, sum)
	if err := u.apply(ctx, tee); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if got := hexSum(sum); got != diffID.Hex {
		return fmt.Errorf("the content's sha256 is %s, the image's configuration says %s", got, diffID.Hex)
	}
	return nil
}
