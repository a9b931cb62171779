#!/usr/bin/env bash
# copy-libraries.sh ROOT PROGRAM...
# Copies the shared libraries that programs load into ROOT/usr/lib.
set -euo pipefail
root=$1
shift
mkdir -p "$root/usr/lib" "$root/lib64"
for program in "$@"; do
    ldd "$program" 2>/dev/null | awk '/=> \//{print $3} /^\t\/.*ld-linux/{print $1}' || true
done | sort -u | while read -r library; do
    case $library in
        */ld-linux-x86-64.so.2) cp -L "$library" "$root/lib64/" ;;
        *) cp -L "$library" "$root/usr/lib/" ;;
    esac
done
