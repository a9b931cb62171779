#!/usr/bin/env bash
# run.sh SCRIPT [FILE...]
# Boots Xen and dom0 under QEMU's software emulation, runs SCRIPT there (busybox's sh, as root) with
# the FILEs in /payload, prints its output and exits with its status. The libraries that a program
# among the FILEs is linked with are added; Xen's own are there. One that is linked with libvarve
# finds it beside itself, and may need nothing else but Xen's and the C library.
#
#   XENRIG_XEN=4.20          a version of Xen other than 4.17
#   XENRIG_SHARE=DIRECTORY   a directory of the host, mounted as /share in dom0
#   XENRIG_HYPERVISOR=FILE   another Xen (ELF, not compressed)
#   XENRIG_DISKS=1           two empty disks, and in dom0 what a thin pool and a guest on it need
#                            (disks/pool.sh)
#   XENRIG_QEMU=PROGRAM      another emulator
#   XENRIG_LOG=FILE          keeps the consoles of Xen and dom0
#
# Exit status 125: the rig itself failed; 124: it ran out of time, or dom0, which prints a heartbeat
# every few seconds, was silent for a minute.
set -Eeuo pipefail
# shellcheck source=settings.sh
. "$(dirname "$0")/settings.sh"
trap 'echo "rig: run.sh stopped at line $LINENO: $BASH_COMMAND ended with $?" >&2' ERR
[ $# -ge 1 ] || { sed -n '2,17p' "$0" >&2; exit 125; }
"$rig/setup.sh" >&2 || exit 125
work=$(mktemp -d)
qemu=
tail=
trap '[ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null; [ -z "$tail" ] || kill "$tail" 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work/root/payload"
cp "$1" "$work/root/payload/script"
shift
for file in "$@"; do
    cp -L "$file" "$work/root/payload/"
    if head -c 4 "$file" | grep -q ELF; then
        # libvarve is in no system whose libraries could be listed.
        readelf -d "$file" | grep 'NEEDED.*\[libvarve\.so' >/dev/null ||
            "$rig/copy-libraries.sh" "$work/root" "$file"
        strip "$work/root/payload/$(basename "$file")"
    fi
done
# The first archive's links are kept: the second one only adds files below real directories.
(cd "$work/root" && rmdir lib64 2>/dev/null || true
    find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$work/payload.cpio"
archives=("$images/dom0.cpio")
machine=()
if [ -n "${XENRIG_DISKS:-}" ]; then
    "$rig/disks/setup.sh" >&2 || exit 125
    # shellcheck source=disks/settings.sh
    . "$rig/disks/settings.sh"
    archives+=("$disk_images/dom0.cpio")
    truncate -s "${XENRIG_DATA}M" "$work/data"
    truncate -s "${XENRIG_METADATA}M" "$work/metadata"
    for disk in data metadata; do
        machine+=(-drive "file=$work/$disk,if=none,id=$disk,format=raw,cache=unsafe"
            -device "virtio-blk-pci,drive=$disk")
    done
fi
cat "${archives[@]}" "$work/payload.cpio" >"$work/initrd"
log=${XENRIG_LOG:-$work/console}
: >"$work/out"
: >"$log"
[ -z "${XENRIG_SHARE:-}" ] \
    || machine+=(-virtfs "local,path=$XENRIG_SHARE,mount_tag=share,security_model=none")
# eager-fpu: with Xen's lazy switching, QEMU 7.2 loses AVX registers between domains, and programs
# occasionally crash.
xen_arguments="dom0_mem=${XENRIG_DOM0_MEM}M,max:${XENRIG_DOM0_MEM}M com1=115200,8n1 console=com1
    loglvl=info guest_loglvl=info xpti=off spec-ctrl=no,eager-fpu=yes noreboot=no watchdog=no
    no-real-mode"
linux_arguments="console=hvc0 loglevel=6 mitigations=off nokaslr random.trust_cpu=on tsc=reliable
    printk.devkmsg=on rdinit=/init panic=5"
# shellcheck disable=SC2086,SC2116
"${XENRIG_QEMU:-qemu-system-x86_64}" -M pc -accel "$XENRIG_ACCEL" -cpu "$XENRIG_CPU" \
    -smp "$XENRIG_CPUS" -m "$XENRIG_MEM" -nodefaults -no-user-config -display none -no-reboot \
    -monitor none -kernel "${XENRIG_HYPERVISOR:-$images/xen}" -append "$(echo $xen_arguments)" \
    -initrd "$images/vmlinux $(echo $linux_arguments),$work/initrd" \
    -serial "file:$log" -serial "file:$work/out" ${machine[@]+"${machine[@]}"} &
qemu=$!
start=$SECONDS
# Prints the script's output; a case's result is followed by the processor time of the emulation,
# which tells more than elapsed time on a busy machine.
used=0
used() { awk -v hertz="$(getconf CLK_TCK)" '{ printf "%d", ($14 + $15) / hertz }' "/proc/$qemu/stat"; }
tail -q -n +1 -s 0.5 --pid=$qemu -f "$work/out" | while IFS= read -r line; do
    case $line in
        'RIG '*) continue ;;
        '✔ case '* | '✘ case '*)
            before=$used
            used=$(used 2>/dev/null || echo "$before")
            line="$line, $((used - before)) s of processor"
            ;;
    esac
    printf '%s\n' "$line"
done &
tail=$!
# The output grows by dom0's heartbeat (dom0/init) as long as the machine works.
size=0
grown=$start
while kill -0 "$qemu" 2>/dev/null; do
    said=$(stat -c %s "$log" "$work/out" | paste -sd+)
    [ "$said" = "$size" ] || grown=$SECONDS
    size=$said
    why=
    [ -z "${XENRIG_PARENT:-}" ] || kill -0 "$XENRIG_PARENT" 2>/dev/null || why="nobody waits for it"
    ((SECONDS - grown <= XENRIG_SILENCE)) || why="dom0 was silent for $((SECONDS - grown)) s"
    ((SECONDS - start <= XENRIG_TIMEOUT)) || why="it is out of time"
    if [ -n "$why" ]; then
        echo "rig: the machine was stopped after $((SECONDS - start)) s: $why; its console ends" \
            "with:" >&2
        tail -n 40 "$log" >&2
        exit 124
    fi
    sleep 0.5
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
