#!/usr/bin/env bash
# copy-libraries.sh ROOT PROGRAM...
# Copies the shared libraries that programs and libraries are linked with into ROOT/usr/lib. Where Xen is another Debian's
# (XENRIG_XEN), they are that Debian's, all of them.
set -euo pipefail
# shellcheck source=settings.sh
. "$(dirname "$0")/settings.sh"
root=$1
shift
mkdir -p "$root/usr/lib" "$root/lib64"
list() {
    local libraries=${sysroot:-$packages}/usr/lib/x86_64-linux-gnu
    if [ -z "$sysroot" ]; then
        LD_LIBRARY_PATH=$libraries ldd "$1" 2>&1 || true
        return
    fi
    # Its own dynamic linker tells what would be loaded; this machine's cache must not answer.
    "$sysroot/usr/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$libraries" \
        --list "$1" 2>&1 || true
}
for program in "$@"; do
    # A static program lists none.
    list "$program" | sed "s|^|$(basename "$program"): |"
done >"$root/libraries"
if grep 'not found' "$root/libraries" >&2; then
    echo "varve: libraries are missing in $packages" >&2
    exit 1
fi
awk '/=> \//{print $4} /: \t\/[^ ]*ld-linux[^ ]* \(/{print $2}' "$root/libraries" | sort -u \
    | while read -r library; do
    if [ -n "$sysroot" ] && [ "${library#"$sysroot"}" = "$library" ]; then
        echo "varve: $library of this machine would be mixed with those of Debian '$suite'" >&2
        exit 1
    fi
    case $library in
        */ld-linux-x86-64.so.2) cp -L "$library" "$root/lib64/" ;;
        *) cp -L "$library" "$root/usr/lib/" ;;
    esac
done
rm "$root/libraries"
