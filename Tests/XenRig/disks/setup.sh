#!/usr/bin/env bash
# setup.sh: fetches what disks need beside the rig's own packages, and builds dom0's part for them,
# which is laid over the rig's dom0 (run.sh, XENRIG_DISKS), and the checker. Does nothing the second
# time. XENRIG_XEN tells the version.
set -Eeuo pipefail
# shellcheck source=../settings.sh
. "$(dirname "$0")/../settings.sh"
# shellcheck source=settings.sh
. "$rig/disks/settings.sh"
# shellcheck source=../own-apt.sh
. "$rig/own-apt.sh"
trap 'echo "varve: disks/setup.sh stopped at line $LINENO: $BASH_COMMAND ended with $?" >&2' ERR
"$rig/setup.sh"
[ ! -e "$disk_images/done" ] || exit 0
exec 9>"$VARVE_XEN_CACHE/lock"
flock 9
[ ! -e "$disk_images/done" ] || exit 0

# 1. Only unpacked, never installed: the modules of the rig's own kernel, and tools with all their
# libraries, which are taken from the same Debian.
release=$(basename "$packages"/boot/vmlinuz-*)
release=${release#vmlinuz-}
tools=(dmsetup thin-provisioning-tools e2fsprogs lvm2 xfsprogs)
programs=(dmsetup pdata_tools mke2fs e2fsck debugfs lvm mkfs.xfs)
if [ ! -e "$disk_packages/done-3-$release" ]; then
    echo "fetching the tools for disks of Xen $XENRIG_XEN by apt into $VARVE_XEN_CACHE"
    rm -rf "$disk_packages"
    mkdir -p "$disk_packages/deb"
    apt=(-o APT::Sandbox::User=root)
    [ -z "$sysroot" ] || own_apt "$suite" "$disk_packages/apt"
    # All that they need, as on a machine where nothing is installed.
    apt+=(-o Dir::State::status=/dev/null -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
    apt-get "${apt[@]}" -qq --no-install-recommends --print-uris install "${tools[@]}" \
        | sed -n 's/^[^ ]* \(lib[^_]*\)_.*/\1/p' >"$disk_packages/libraries"
    mapfile -t libraries <"$disk_packages/libraries"
    (cd "$disk_packages/deb" && apt-get "${apt[@]}" -qq download "${tools[@]}" "${libraries[@]}")
    if ! (cd "$disk_packages/deb" && apt-get "${apt[@]}" -qq download "linux-image-$release"); then
        echo "varve: Debian has no modules of the rig's kernel $release any more; remove" \
            "$packages and try again" >&2
        exit 1
    fi
    for package in "$disk_packages"/deb/*.deb; do dpkg-deb -x "$package" "$disk_packages"; done
    [ -e "$disk_packages/lib/x86_64-linux-gnu" ] || ln -sfn usr/lib "$disk_packages/lib"
    (
        cd "$disk_packages/lib/modules/$release"
        find . -name '*.ko*' ! -regex \
            '.*/\(dm-\|loop\|virtio\|xen-blk\|xen-net\|ext4\|jbd2\|mbcache\|xfs\|crc\|libcrc\)[^/]*' -delete
        find . -name '*.ko.xz' -exec xz -d {} +
    )
    rm -rf "$disk_packages"/{deb,apt,boot,usr/share}
    touch "$disk_packages/done-3-$release"
fi

# 2. The guest with two disks.
echo "building the rig's images for disks of Xen $XENRIG_XEN"
rm -rf "$VARVE_XEN_CACHE/disk-images-$XENRIG_XEN"-*
mkdir -p "$disk_images"
cd "$rig/disks"
# place DIRECTORY NAME...: modules and what they need, with numbers in the order of loading; not
# those that the rig's dom0 loads itself.
place() {
    local number=10 directory=$1
    shift
    mkdir -p "$directory"
    python3 ../module-order.py "$disk_packages/lib/modules" "$@" | while read -r module; do
        case $directory:$(basename "$module") in "$disk_images"/dom0*:virtio.ko | \
            "$disk_images"/dom0*:virtio_ring.ko) continue ;; esac
        cp "$module" "$directory/$number-$(basename "$module")"
        number=$((number + 1))
    done
}
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"; }

root=$disk_images/domu-root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,a,b}
cp /bin/busybox "$root/bin/"
gcc -O2 -Wall -Wextra -Werror -static -pthread -o "$root/bin/diskkeeper" diskkeeper.c
strip "$root/bin/diskkeeper"
install -m755 init "$root/init"
install -m755 poweroff "$root/sbin/poweroff"
place "$root/modules" crc32c_generic ext4 xen-blkfront xen-netfront
pack "$root" "$disk_images/domu.cpio"

# 3. dom0: modules, tools with their libraries, the hotplug script.
root=$disk_images/dom0-root
mkdir -p "$root"/{rig,etc/xen/scripts,usr/lib,disks/bin}
place "$root/disks/modules" crc32c_generic loop virtio_blk dm-mod dm-thin-pool dm-flakey dm-delay \
    ext4 xfs xen-blkback xen-netback
libraries=$disk_packages/lib/x86_64-linux-gnu:$disk_packages/usr/lib/x86_64-linux-gnu
linker=$(find "$disk_packages" -type f -name 'ld-linux-x86-64.so.2' -print -quit)
for program in "${programs[@]}"; do
    cp "$(find "$disk_packages" -path "*/sbin/$program" -print -quit)" "$root/disks/bin/"
    # This machine's own libraries must not answer.
    "$linker" --inhibit-cache --library-path "$libraries" --list "$root/disks/bin/$program"
done >"$disk_images/libraries"
if grep 'not found' "$disk_images/libraries" >&2; then
    echo "varve: libraries of the disks' tools are missing in $disk_packages" >&2
    exit 1
fi
# What the rig's dom0 has already stays its own: it is of the same Debian.
cpio -t --quiet <"$images/dom0.cpio" | sed -n 's|^usr/lib/||p' >"$disk_images/there"
awk '/=> \// && !/ld-linux/ { print $3 }' "$disk_images/libraries" | sort -u | while read -r library; do
    grep -qxF "$(basename "$library")" "$disk_images/there" || cp -L "$library" "$root/usr/lib/"
done
rm "$disk_images/there" "$disk_images/libraries"
for program in diskcheck diskdeath; do
    gcc -O2 -Wall -Wextra -Werror -static -o "$root/disks/bin/$program" $program.c
done
strip "$root"/disks/bin/*
gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$root/disks/bin/revertdeath.so" revertdeath.c
for name in thin_check thin_delta thin_dump; do ln -s pdata_tools "$root/disks/bin/$name"; done
cp "$root/disks/bin/diskcheck" "$disk_images/"
install -m755 block vif "$root/etc/xen/scripts/"
cp pool.sh "$disk_images/domu.cpio" "$root/disks/"
pack "$root" "$disk_images/dom0.cpio"
rm -rf "$disk_images/domu-root" "$disk_images/dom0-root"
touch "$disk_images/done"
