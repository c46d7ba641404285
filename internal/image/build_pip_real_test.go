package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A release that a list pins comes before the one that the distribution
// brought, and everything agrees about it. The distribution's package is one of
// apt's layer here, as it may be the template's.
func TestPipReplacesTheDistributionsPackages(t *testing.T) {
	base := realBase(t)
	open := openChroot(t, &boxHooks{})
	b, err := NewBuilder(BuilderConfig{LayersDir: t.TempDir(), OpenBox: open})
	must(t, err)
	defer b.Close()
	run, err := b.Start(Request{Base: base, Packages: Packages{Apt: []string{"python3-idna", "python3-iniconfig"}, Pip: []string{"idna==3.7", "iniconfig"}}})
	must(t, err)
	res, err := run.Wait(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, run.Log().Text())
	}
	defer res.Release()
	if records, _ := filepath.Glob(filepath.Join(res.Layers[1].Dir, "usr/lib/python3/dist-packages/*/RECORD")); len(records) > 0 {
		t.Errorf("the layer has %v", records)
	}
	target, work := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(work+"/u", 0o755), os.Mkdir(work+"/w", 0o755))
	mount := exec.Command("mount", "-t", "overlay", "overlay", "-o", "lowerdir="+res.Layers[1].Dir+":"+res.Layers[0].Dir+":"+base.Dir+",upperdir="+work+"/u,workdir="+work+"/w", target)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", target).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}()
	const script = `import idna, importlib.metadata as m, subprocess, sys
print(idna.package_data.__version__, m.version("idna"), idna.__file__)
print([d.version for d in m.distributions() if d.metadata["Name"] == "idna"])
print([l for l in subprocess.run([sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], capture_output=True, text=True).stdout.split() if l.startswith("idna=")])`
	out, err := exec.Command("chroot", target, "python3", "-c", script).CombinedOutput()
	text := string(out)
	if err != nil || !strings.Contains(text, "3.7 3.7 /usr/local/lib/python3") || !strings.Contains(text, "['3.7']") || !strings.Contains(text, "['idna==3.7']") {
		t.Errorf("%v\n%s", err, text)
	}
}
