#!/usr/bin/env bash
# build-shadow-xen.sh FILE
# Builds Debian's Xen with shadow paging, which Debian leaves out: it gives PV guests log-dirty
# mode. Run by hand; takes about 3 minutes. Then:
#   XENRIG_HYPERVISOR=FILE Scripts/xen-test --only 'live-pv'
# Installs flex, bison and make with apt. The source comes from apt's configured mirrors.
set -euo pipefail
# shellcheck source=settings.sh
. "$(dirname "$0")/settings.sh"
file=$(realpath -m "${1:?"usage: build-shadow-xen.sh FILE"}")
need=()
for package in flex bison make gcc libc6-dev; do
    dpkg-query -W -f='${db:Status-Status}' $package 2>/dev/null | grep -qx installed || need+=("$package")
done
if [ ${#need[@]} -gt 0 ]; then
    echo "installing: apt-get install -y --no-install-recommends ${need[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
source=$VARVE_XEN_CACHE/source
rm -rf "$source"
mkdir -p "$source/lists/partial" "$source/tree"
cd "$source"
# The sources of apt's packages, in a separate list.
apt-get indextargets --format 'deb-src $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
    | sort -u >sources.list
options=(-o "Dir::Etc::sourcelist=$source/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$source/lists" -o Dir::Cache::srcpkgcache= -o Dir::Cache::pkgcache=
    -o APT::Sandbox::User=root)
apt-get "${options[@]}" -qq update
# A mirror may lack the source of the newest update; the previous one works as well.
apt-cache "${options[@]}" showsrc xen | sed -n 's/^Version: //p' | sort -Vr >versions
while read -r version; do
    apt-get "${options[@]}" -qq source --download-only "xen=$version" && break
done <versions
tar xf xen_*.orig.tar.xz -C tree --strip-components=1
cd tree/xen
export XEN_TARGET_ARCH=x86_64
make -s defconfig
sed -i 's/^# CONFIG_SHADOW_PAGING is not set/CONFIG_SHADOW_PAGING=y/' .config
make -s olddefconfig
grep -q '^CONFIG_SHADOW_PAGING=y' .config
make -s -j"$(nproc)"
gzip -dc xen.gz >"$file"
echo "$file"
