#!/usr/bin/env bash
# send.sh DIRECTORY <SCRIPT: runs a script of busybox's sh in the dom0 that
#   Scripts/xen-test --shell DIRECTORY
# has booted, and ends with its status. The functions of /rig/rig.sh and /disks/pool.sh are there.
# A file `stop` in DIRECTORY ends the machine.
set -euo pipefail
rm -f "$1"/{status,output}
cat >"$1/next.part"
mv "$1/next.part" "$1/next"
until [ -s "$1/status" ]; do sleep 0.2; done
cat "$1/output"
exit "$(cat "$1/status")"
