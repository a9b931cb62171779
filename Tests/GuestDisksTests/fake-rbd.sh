#!/bin/sh
# Stands for `rbd` in the tests: an image is $RBD/POOL-IMAGE, its snapshot $RBD/POOL-IMAGE@SNAP,
# and an object has 64 KiB.
set -eu
file() { echo "$RBD/$(echo "$1" | tr / -)"; }
words=
from=
while [ $# -gt 0 ]; do
    case $1 in
    --from-snap)
        from=$2
        shift
        ;;
    --format) shift ;;
    --*) ;;
    *) words="$words $1" ;;
    esac
    shift
done
# shellcheck disable=SC2086
set -- $words
echo "$*" >>"$RBD/log"
object() { dd if="$1" bs=65536 skip="$2" count=1 2>/dev/null | cksum; }
case "$1 ${2-}" in
"info "*)
    printf '{"name":"x","id":"1","size":%s,"objects":16}\n' "$(stat -c %s "$(file "$2")")"
    ;;
"snap create")
    [ ! -e "$(file "$3")" ] || exit 17
    cp "$(file "${3%@*}")" "$(file "$3")"
    ;;
"snap ls")
    printf '['
    for snap in "$(file "$3")"@*; do
        [ -e "$snap" ] && printf '{"id":4,"name":"%s","size":1},' "${snap##*@}"
    done
    printf '{}]\n'
    ;;
"snap rm")
    [ ! -e "$RBD/mapped-$(basename "$(file "$3")")" ] || exit 16
    rm "$(file "$3")"
    ;;
"map "*)
    [ -e "$(file "$2")" ] || exit 2
    touch "$RBD/mapped-$(basename "$(file "$2")")"
    file "$2"
    ;;
"unmap "*) rm "$RBD/mapped-$(basename "$(file "$2")")" ;;
"diff "*)
    new=$(file "$2")
    old=/dev/null
    [ -z "$from" ] || old=$(file "${2%@*}@$from")
    printf '['
    separator=
    for index in $(seq 0 15); do
        if [ "$(object "$new" "$index")" != "$(object "$old" "$index")" ]; then
            printf '%s{"offset":%s,"length":65536,"exists":"true"}' "$separator" \
                $((index * 65536))
            separator=,
        fi
    done
    printf ']\n'
    ;;
*) exit 22 ;;
esac
