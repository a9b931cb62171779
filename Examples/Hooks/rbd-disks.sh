#!/bin/sh
# Disks on Ceph RBD for Varve's `HookedDisks`: each cut is a snapshot of each image.
#
#   rbd-disks.sh DISK=POOL/IMAGE... VERB [ARGUMENT...]
#
# For example HookedDisks(command: ["/etc/varve/rbd-disks.sh", "xvda=rbd/web-root",
# "xvdb=rbd/web-data"], ...). Varve appends the verb. The guest's disks are these images, mapped by
# krbd (`phy:/dev/rbd/POOL/IMAGE`), and not with `rbd map -o exclusive`, which keeps a snapshot from
# being made.
#
# The guest stands still while `cut` makes the snapshots one after the other. A snapshot is made
# when every client of the image knows of it, and what krbd had under way is in it or will be
# written again by the guest.
#
# What changed is known in whole objects, of 4 MiB unless the image was made otherwise; with the
# features object-map and fast-diff it is answered without reading the objects.

set -eu

fail() {
    echo "rbd-disks.sh: $*" >&2
    exit 1
}

disks=
while [ $# -gt 0 ]; do
    case $1 in
    *=*) ;;
    *) break ;;
    esac
    # They are printed as JSON and split at spaces below.
    case $1 in
    *[!A-Za-z0-9_.:=/-]*) fail "'$1' is not DISK=POOL/IMAGE of plain letters" ;;
    esac
    disks="$disks $1"
    shift
done
[ -n "$disks" ] && [ $# -gt 0 ] || fail "usage: rbd-disks.sh DISK=POOL/IMAGE... VERB [ARGUMENT...]"

verb=$1
token=${2-}
case $verb:$token in
disks:) ;;
disks:*) fail "disks takes no argument" ;;
*:varve-*) ;;
*) fail "'$token' is no token of Varve's" ;;
esac

# The image of a disk.
image() {
    for disk in $disks; do
        if [ "${disk%%=*}" = "$1" ]; then
            echo "${disk#*=}"
            return
        fi
    done
    fail "there is no disk '$1'"
}

print_disks() {
    separator=
    printf '{"disks": ['
    for disk in $disks; do
        size=$(rbd info --format json "${disk#*=}" | sed -n 's/.*"size": *\([0-9][0-9]*\).*/\1/p')
        [ -n "$size" ] || fail "the size of ${disk#*=} is unknown"
        printf '%s{"name": "%s", "bytes": %s, "sector": 512}' "$separator" "${disk%%=*}" "$size"
        separator=', '
    done
    printf ']}\n'
}

case $verb in
disks)
    print_disks
    ;;
cut)
    for disk in $disks; do
        rbd snap create --no-progress "${disk#*=}@$token" >&2
    done
    echo '{}'
    ;;
open)
    device=$(rbd map --read-only "$(image "$3")@$token")
    printf '{"path": "%s"}\n' "$device"
    ;;
changed)
    image=$(image "$3")
    if [ $# -gt 3 ]; then
        extents=$(rbd diff --whole-object --format json --from-snap "$4" "$image@$token")
    else
        extents=$(rbd diff --whole-object --format json "$image@$token")
    fi
    printf '{"changed": %s}\n' "$extents"
    ;;
release)
    for disk in $disks; do
        image=${disk#*=}
        # Once for each time that it was opened.
        while rbd unmap "$image@$token" 2>/dev/null; do :; done
        # A cut that was given up half-way has not all of them.
        if rbd snap ls --format json "$image" | grep -q "\"name\": *\"$token\""; then
            rbd snap rm --no-progress "$image@$token" >&2
        fi
    done
    ;;
*)
    fail "unknown verb '$verb'"
    ;;
esac
