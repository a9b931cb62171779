#!/bin/sh
# In the place of xl, by a link in a test's directory. `restore` keeps what is passed to it in
# `passed`, says so by `done`, waits for `go`, and ends with the status in `status`; `destroy` says
# so by `destroyed`, and waits for `gone`.
home=${0%/*}
if [ "$1" = destroy ]; then
    echo "$2" >"$home/destroyed"
    while [ ! -e "$home/gone" ]; do sleep 0.01; done
    exit 0
fi
cat >"$home/passed"
: >"$home/done"
while [ ! -e "$home/go" ]; do sleep 0.01; done
read -r status <"$home/status"
[ "$status" = 0 ] || echo "Error: no room" >&2
exit "$status"
