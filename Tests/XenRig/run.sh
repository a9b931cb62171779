#!/usr/bin/env bash
# run.sh SCRIPT [FILE...]
# Boots Xen and dom0 under QEMU's software emulation, runs SCRIPT there (busybox's sh, as root) with
# the FILEs beside it in /payload, prints what it prints and exits with its status. A program among
# the FILEs brings the libraries it loads.
#
#   XENRIG_SHARE=DIRECTORY   a directory of the host that dom0 sees as /share
#   XENRIG_HYPERVISOR=FILE   another Xen (ELF, not compressed)
#   XENRIG_LOG=FILE          keeps the consoles of Xen and dom0
#
# Exit status 125: the rig itself failed; 124: it ran out of time, or stood still for 5 minutes.
set -euo pipefail
# shellcheck source=settings.sh
. "$(dirname "$0")/settings.sh"
[ $# -ge 1 ] || { sed -n '2,11p' "$0" >&2; exit 125; }
"$rig/setup.sh" >&2
work=$(mktemp -d)
qemu=
tail=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; [ -z "$tail" ] || kill "$tail" 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work/root/payload"
cp "$1" "$work/root/payload/script"
shift
for file in "$@"; do
    cp -L "$file" "$work/root/payload/"
    if head -c 4 "$file" | grep -q ELF; then
        "$rig/copy-libraries.sh" "$work/root" "$file"
        strip "$work/root/payload/$(basename "$file")"
    fi
done
# The first archive's links stay: the second one only adds files below real directories.
(cd "$work/root" && rmdir lib64 2>/dev/null || true
    find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$work/payload.cpio"
cat "$images/dom0.cpio" "$work/payload.cpio" >"$work/initrd"
log=${XENRIG_LOG:-$work/console}
: >"$work/out"
: >"$log"
share=()
[ -z "${XENRIG_SHARE:-}" ] \
    || share=(-virtfs "local,path=$XENRIG_SHARE,mount_tag=share,security_model=none")
# eager-fpu: with Xen's lazy switching QEMU 7.2 loses AVX registers between domains, and programs
# crash now and then.
xen_arguments="dom0_mem=${XENRIG_DOM0_MEM}M,max:${XENRIG_DOM0_MEM}M com1=115200,8n1 console=com1
    loglvl=info guest_loglvl=info xpti=off spec-ctrl=no,eager-fpu=yes noreboot=no watchdog=no
    no-real-mode"
linux_arguments="console=hvc0 loglevel=6 mitigations=off nokaslr random.trust_cpu=on tsc=reliable
    rdinit=/init panic=5"
# shellcheck disable=SC2086,SC2116
qemu-system-x86_64 -M pc -accel "$XENRIG_ACCEL" -cpu "$XENRIG_CPU" -smp "$XENRIG_CPUS" \
    -m "$XENRIG_MEM" -nodefaults -no-user-config -display none -no-reboot -monitor none \
    -kernel "${XENRIG_HYPERVISOR:-$images/xen}" -append "$(echo $xen_arguments)" \
    -initrd "$images/vmlinux $(echo $linux_arguments),$work/initrd" \
    -serial "file:$log" -serial "file:$work/out" ${share[@]+"${share[@]}"} &
qemu=$!
start=$SECONDS
tail -q -n +1 -s 0.2 --pid=$qemu -f "$work/out" | grep --line-buffered -v '^RIG ' &
tail=$!
size=0
grown=$start
while kill -0 "$qemu" 2>/dev/null; do
    # Each case makes Xen say something; the emulation hangs now and then, with one processor at work.
    said=$(cat "$log" "$work/out" | wc -c)
    [ "$said" = "$size" ] || grown=$SECONDS
    size=$said
    if ((SECONDS - start > XENRIG_TIMEOUT || SECONDS - grown > 300)); then
        echo "rig: out of time after $((SECONDS - start)) s, nothing was said for" \
            "$((SECONDS - grown)) s; the console ends with:" >&2
        tail -n 40 "$log" >&2
        exit 124
    fi
    sleep 0.2
done
wait "$qemu" || true
qemu=
wait "$tail" || true
tail=
status=$(sed -n 's/^RIG [0-9.]* exit \([0-9]*\).*/\1/p' "$work/out" | tail -n 1)
if [ -z "$status" ]; then
    echo "rig: the machine ended without a result; its console ends with:" >&2
    tail -n 60 "$log" >&2
    exit 125
fi
exit "$status"
