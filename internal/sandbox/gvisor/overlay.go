package gvisor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOverlay mounts layers (lowest first) under upper on target. The upper
// directory stays readable as an overlay layer: no redirects, no metadata-only
// copies, no index. volatile spares every sync inside: the disk does not
// outlive the host.
func mountOverlay(target string, layers []string, upper, work string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mounting layers: %w", err)
	}
	defer unix.Close(fs)
	for _, layer := range slices.Backward(layers) {
		if err := unix.FsconfigSetString(fs, "lowerdir+", layer); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return mountOverlayOld(target, layers, upper, work)
			}
			return fmt.Errorf("mounting layer %s: %w", layer, err)
		}
	}
	options := [][2]string{{"upperdir", upper}, {"workdir", work}, {"redirect_dir", "off"}, {"metacopy", "off"}, {"index", "off"}}
	for _, option := range options {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return fmt.Errorf("mounting layers: %s: %w", option[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return fmt.Errorf("mounting layers: volatile: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mounting layers: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return fmt.Errorf("mounting layers: %w", err)
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting layers: %w", err)
	}
	return nil
}

// mountOverlayOld is for kernels before 6.7, which know no lowerdir+: all
// options in one page.
func mountOverlayOld(target string, layers []string, upper, work string) error {
	quote := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)
	var lower []string
	for _, layer := range slices.Backward(layers) {
		lower = append(lower, quote.Replace(layer))
	}
	data := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + quote.Replace(upper) + ",workdir=" + quote.Replace(work) +
		",redirect_dir=off,metacopy=off,index=off,volatile"
	if len(data) >= 4096 {
		return fmt.Errorf("mounting layers: %d layers have too long paths for this kernel", len(layers))
	}
	if err := unix.Mount("overlay", target, "overlay", unix.MS_NODEV|unix.MS_NOATIME, data); err != nil {
		return fmt.Errorf("mounting layers: %w", err)
	}
	return nil
}

// unmount detaches whatever is mounted on path, also several times over; what
// is not mounted is fine.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
}
