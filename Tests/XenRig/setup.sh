#!/usr/bin/env bash
# setup.sh: fetches Xen and a kernel of Debian, and builds the rig's images. Does nothing the second
# time. XENRIG_XEN tells the version.
set -Eeuo pipefail
# shellcheck source=settings.sh
. "$(dirname "$0")/settings.sh"
# shellcheck source=own-apt.sh
. "$rig/own-apt.sh"
trap 'echo "varve: setup.sh stopped at line $LINENO: $BASH_COMMAND ended with $?" >&2' ERR
[ ! -e "$images/done" ] || exit 0
mkdir -p "$VARVE_XEN_CACHE"
# Two machines may begin at once.
exec 9>"$VARVE_XEN_CACHE/lock"
flock 9
[ ! -e "$images/done" ] || exit 0

# 1. On the host: the emulator, and what the images are made from.
need=()
command -v qemu-system-x86_64 >/dev/null || need+=(qemu-system-x86)
command -v cpio >/dev/null || need+=(cpio)
command -v python3 >/dev/null || need+=(python3)
command -v zstd >/dev/null || need+=(zstd)
command -v xz >/dev/null || need+=(xz-utils)
command -v gcc >/dev/null || need+=(gcc libc6-dev)
command -v strip >/dev/null || need+=(binutils)
[ -x /bin/busybox ] || need+=(busybox-static)
if [ ${#need[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "varve: packages are missing; run: sudo apt-get install -y ${need[*]}" >&2
        exit 1
    fi
    echo "installing: apt-get install -y --no-install-recommends ${need[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi

# 2. Only unpacked, never installed: hypervisor, tool stack, kernel. What is not needed goes.
xen_packages=("xen-hypervisor-$XENRIG_XEN-amd64" "xen-utils-$XENRIG_XEN" xenstore-utils libyajl2)
xen_libraries=(libxencall1 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1
    libxenhypfs1 "libxenmisc$XENRIG_XEN" libxenstore4 libxentoolcore1 libxentoollog1)
# Its headers, with which Scripts/xen-test compares the declarations of Sources/CXen.
xen_libraries+=(libxen-dev)
if [ ! -e "$packages/done" ]; then
    echo "fetching Xen $XENRIG_XEN and a kernel by apt into $VARVE_XEN_CACHE"
    rm -rf "$packages"
    mkdir -p "$packages/deb"
    apt=(-o APT::Sandbox::User=root)
    if [ -n "$sysroot" ]; then
        # Another Debian's: with its C library, and what Varve is linked with.
        own_apt "$suite" "$packages/apt"
        xen_packages+=(libc6 libgcc-s1 libstdc++6 liblzma5 libuuid1 libzstd1 zlib1g liblmdb0
            libdevmapper1.02.1 libudev1 libselinux1 libpcre2-8-0 libcap2)
    elif [ -z "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ]; then
        apt-get update -qq
    fi
    kernel=$(apt-cache "${apt[@]}" depends linux-image-amd64 \
        | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    if [ -z "$kernel" ]; then
        echo "varve: apt knows no kernel (linux-image-amd64) of Debian '$suite'" >&2
        exit 1
    fi
    (cd "$packages/deb" && apt-get "${apt[@]}" -qq download \
        "${xen_packages[@]}" "${xen_libraries[@]}" "$kernel")
    for package in "$packages"/deb/*.deb; do dpkg-deb -x "$package" "$packages"; done
    rm -rf "$packages/deb" "$packages/apt" "$packages"/usr/lib/*/*.a
    # Of the kernel's modules some twenty are used.
    [ -e "$packages/lib/modules" ] || ln -sfn usr/lib "$packages/lib"
    (
        cd "$packages/lib/modules"
        find . -name '*.ko*' ! -regex '.*/\(xen\|9p\|virtio\|fscache\|netfs\)[^/]*\(/.*\)?' \
            -delete
        find . -name '*.ko.xz' -exec xz -d {} +
    )
    touch "$packages/done"
fi

# 3. The kernel, the guests' file system and dom0's.
echo "building the rig's images of Xen $XENRIG_XEN"
rm -rf "$VARVE_XEN_CACHE/images-$XENRIG_XEN"-*
mkdir -p "$images"
cd "$rig"
python3 unpack-kernel.py "$(ls "$packages"/boot/vmlinuz-*-amd64 | head -n 1)" "$images/vmlinux"
gzip -dc "$packages/boot/xen-$XENRIG_XEN-amd64.gz" >"$images/xen"

pack() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$2"; }

root=$images/domu-root
mkdir -p "$root"/{bin,sbin,dev,proc,sys}
cp /bin/busybox "$root/bin/"
gcc -O2 -Wall -Werror -static -o "$root/bin/dirtier" domu/dirtier.c
install -m755 domu/init "$root/init"
# What the kernel starts when the guest is told to power off (control/shutdown).
install -m755 domu/poweroff "$root/sbin/poweroff"
pack "$root" "$images/domu.cpio"

root=$images/dom0-root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,run,mnt,share,etc/xen,modules,rig,lib64,usr/lib}
mkdir -p "$root"/var/{lib/xen,lib/xenstored,log/xen}
ln -s ../run "$root/var/run"
ln -s usr/lib "$root/lib"
tools=$root/usr/lib/xen-$XENRIG_XEN/bin
mkdir -p "$tools"
for tool in xl xenstored xenconsoled xenconsole xen-init-dom0 libxl-save-helper; do
    cp "$packages/usr/lib/xen-$XENRIG_XEN/bin/$tool" "$tools/"
done
for tool in "$packages"/usr/bin/xenstore*; do [ ! -e "$tool" ] || cp "$tool" "$root/bin/"; done
cp /bin/busybox "$root/bin/"
# Varve loads these by name, so ldd does not show them.
loaded=()
for library in libxencall.so.1 libxendevicemodel.so.1 libxenforeignmemory.so.1 libxengnttab.so.1 \
    libxenstore.so.4 libxentoollog.so.1 lib{xenctrl,xenguest,xenlight}.so."$XENRIG_XEN"; do
    cp -L "$packages/usr/lib/x86_64-linux-gnu/$library" "$root/usr/lib/"
    loaded+=("$packages/usr/lib/x86_64-linux-gnu/$library")
done
./copy-libraries.sh "$root" "$tools"/* "$root/bin/xenstore" "${loaded[@]}"
# pthread_cancel loads it by name, so ldd does not show it; xl aborts without it.
cp -L "$sysroot/usr/lib/x86_64-linux-gnu/libgcc_s.so.1" "$root/usr/lib/"
number=10
python3 module-order.py "$packages/lib/modules" xen-privcmd xen-evtchn xen-gntdev xen-gntalloc \
    xenfs virtio_pci 9pnet_virtio 9p | while read -r module; do
    cp "$module" "$root/modules/$number-$(basename "$module")"
    number=$((number + 1))
done
sed "s|XENVERSION|$XENRIG_XEN|" dom0/init >"$root/init"
chmod 755 "$root/init"
cp dom0/rig.sh dom0/*.cfg "$images/domu.cpio" "$images/vmlinux" "$root/rig/"
echo 'autoballoon="off"' >"$root/etc/xen/xl.conf"
pack "$root" "$images/dom0.cpio"
rm -rf "$images/domu-root" "$images/dom0-root"
touch "$images/done"
