# The cases, in dom0: stock xl compared with this project's command line.
#
# Each case starts in an empty /run/case, prints one line, and leaves only its guest: the next case
# uses it (have_guest), because booting one takes longer. If /share exists, the streams for the
# tests on the host are copied there.
. /rig/rig.sh
cd /run || exit 1
varve=/payload/varve
cases=/payload/XenCases
share=
grep -q ' /share 9p' /proc/mounts && share=/share

# The version of the hypervisor, such as 4.17.
running=$(xl info | sed -n 's/^xen_version *: *\([0-9]*\.[0-9]*\).*/\1/p')

fail() { echo "    $*"; return 1; }

# lost_guest: true if a guest of this case died of an error of the emulated processor: a triple
# fault, or a kernel panic that was not requested.
#
# With more than one emulated processor, or a thread for each, a guest in log-dirty mode dies after
# some 300 to 4,000 reads of the log by any program, at any instruction; see the case live-churn.
lost_guest() {
    xl dmesg | grep -q 'Triple fault' && return 0
    cat /var/log/xen/guest-*.log | grep 'Kernel panic' | grep -qv sysrq
}

# clean_up [KEPT]: removes the processes and guests of a case, except a guest of this name.
clean_up() {
    killall -q -9 varve XenCases embed-libxl notes
    for domain in $(xl list | awk -v kept="$1" 'NR > 2 && $1 != kept { print $1 }'); do
        xl destroy "$domain"
    done
}

# have_guest KIND: uses the guest of the previous case, if it counts and has found no error;
# otherwise starts a new one.
have_guest() {
    if xl domid "$1" >/dev/null 2>&1; then
        wait_console "$1" 'writes=' 10 && [ "$(errors "$1")" -eq 0 ] && return 0
        echo "the guest that was left does not go on: a new one"
        xl destroy "$1"
    fi
    start_guest "$1" && settle "$1"
}

# run NAME GUEST SECONDS: runs the function of this name in an empty /run/case, in its own shell.
# The output goes to case.log, which is shown if the case fails; its lines with '#' always are.
run() {
    clean_up "$2"
    rm -rf /run/case
    mkdir -p /run/case
    cd /run/case || exit 1
    # Forget what happened to earlier guests.
    xl dmesg -c >/dev/null
    for log in /var/log/xen/guest-*.log; do : >"$log"; done
    "$varve" init store >/dev/null || exit 1
    start=$(now)
    (
        "$(echo "$1" | tr - _)"
    ) >case.log 2>&1 &
    shell=$!
    (
        sleep "$3"
        echo "the case took longer than $3 s; it was stopped" >>/run/case/case.log
        kill -9 $shell
        killall -q -9 varve XenCases embed-libxl xl libxl-save-helper
    ) >/dev/null 2>&1 &
    limit=$!
    wait $shell
    status=$?
    kill -9 $limit
    wait $limit 2>/dev/null
    took=$(echo "$start $(now)" | awk '{ printf "%.1f", $2 - $1 }')
    grep '^#' case.log | sed 's/^#/   /'
    if lost_guest; then
        echo "    the emulation lost a guest of case $1"
    fi
    if [ $status -eq 0 ]; then
        echo "✔ case $1 passed ($took s)"
    else
        tail -n 30 case.log | sed 's/^/    /'
        for log in /var/log/xen/guest-*.log; do tail -n 15 "$log" | sed "s|^|    ${log##*/}: |"; done
        clean_up
        echo "✘ case $1 failed ($took s)"
    fi
}

# restored NAME FILE FROM [TO]: starts a file with stock xl; the guest must continue counting
# between FROM and shortly after TO (or FROM), without an error. A guest that was booted would count
# from 0, one from another time from a different number: it writes 16 pages every 20 ms at most.
restored() {
    : >"/var/log/xen/guest-$1.log"
    xl restore "$2" || return 1
    wait_console "$1" 'writes=' 60 || fail "the restored guest says nothing" || return 1
    first=$(first_writes "$1")
    [ "$first" -ge "$3" ] || fail "goes on at $first, before $3" || return 1
    [ "$first" -le $((${4:-$3} + 4000)) ] || fail "goes on at $first, long after $3" || return 1
    goes_on "$1"
}

# goes_on NAME: the guest counts, and its own check finds nothing.
goes_on() {
    before=$(writes "$1")
    tries=50
    while [ "$(writes "$1")" -le "$before" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "$1 does not go on after $before" || return 1
        sleep 0.2
    done
    [ "$(errors "$1")" -eq 0 ] || fail "the guest found errors" || return 1
}

# keep FILE NAME KIND: stores NAME-VERSION.KIND for the tests on the host, with a rename at the end.
keep() {
    [ -z "$share" ] || { cat "$1" >"$share/$2.part" && mv "$share/$2.part" "$share/$2-$running.$3"; }
}

# settle NAME: lets the guest write for a while.
settle() {
    wait_console "$1" 'writes=[0-9][0-9][0-9]' 60
}

# A guest is saved by stock xl, imported, exported, and started by stock xl.
save_restore_pv() { save_restore pv; }
save_restore_pvh() { save_restore pvh; }
save_restore() {
    have_guest "$1" || return 1
    xl save "$1" file || return 1
    at=$(writes "$1")
    $varve import store file --lineage web || return 1
    keep file "$1" xlsave
    rm file
    $varve export store web file --format xl || return 1
    restored "$1" file "$at" || return 1
    rm file
    xl destroy "$1"
    # The same through a pipe.
    : >"/var/log/xen/guest-$1.log"
    $varve export store web - --format xl | xl restore /dev/stdin || return 1
    wait_console "$1" 'writes=' 60 && goes_on "$1" || return 1
    $varve verify store
}

# Saves of a running guest, directly into a store; the second costs only the changes.
save_pipe() {
    have_guest pvh || return 1
    for i in 1 2; do
        xl save -c pvh /dev/stdout 2>save.log | $varve import store - --lineage web --json >line-$i \
            || return 1
        goes_on pvh || return 1
    done
    first=$(sed 's/.*"pagesChanged":\([0-9]*\).*/\1/' line-1)
    second=$(sed 's/.*"pagesChanged":\([0-9]*\).*/\1/' line-2)
    echo "# pages changed: $first, then $second"
    [ "$second" -lt $((first / 4)) ] || fail "the second save changed $second pages"
}

# Stock Remus sends to the store; its sender is killed; the newest epoch and an older one are
# started.
remus() {
    have_guest pvh || return 1
    # xl's stream is kept unchanged, for the tests on the host.
    xl remus -F -d -n -e -i 200 -s '' pvh \
        "$cases tee /run/case/stream | $varve receive /run/case/store --lineage remus" >remus.log 2>&1 &
    sender=$!
    tries=900
    while [ "$(grep -c 'pages changed' remus.log)" -lt 6 ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { cat remus.log; fail "no epochs came"; return 1; }
        sleep 0.2
    done
    kill -9 $sender
    killall -9 libxl-save-helper
    tries=100
    while pidof varve >/dev/null; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "the receiver does not end" || return 1
        sleep 0.2
    done
    cat remus.log
    grep -q 'whole epochs' remus.log || fail "the receiver said nothing of its end" || return 1
    at=$(writes pvh)
    xl destroy pvh
    keep stream remus xlsave
    rm stream
    count=$($varve log store --json | wc -l)
    echo "# epochs in the store: $count"
    [ "$count" -ge 6 ] || fail "only $count checkpoints" || return 1
    $varve verify store || return 1
    # By the contents of their memory: the guest's console prints once a second, and four epochs may
    # take less time than that.
    newest=$($cases wrote store remus) || return 1
    older=$($cases wrote store remus~4) || return 1
    echo "# the newest epoch holds $newest writes, the one four before it $older"
    [ "$older" -lt "$newest" ] || fail "the older epoch is not older" || return 1
    for checkpoint in remus remus~4; do
        $varve export store $checkpoint file --format xl || return 1
        restored pvh file "$($cases wrote store $checkpoint)" || return 1
        rm file
        [ $checkpoint != remus ] || xl destroy pvh
    done
}

# Stock migration: the guest is stored, and its sender resumes it.
migrate() {
    have_guest pvh || return 1
    at=$(writes pvh)
    xl migrate -s '' pvh "$varve receive /run/case/store --lineage web"
    xl list
    xl domid pvh || fail "the guest has lost its name" || return 1
    to=$(writes pvh)
    goes_on pvh || return 1
    $varve log store --json | grep -q pagesChanged || fail "nothing was stored" || return 1
    xl destroy pvh
    $varve export store web file --format xl && restored pvh file "$at" "$to"
}

# The same guest as saved and as dumped by stock xl: the tests on the host compare an export of the
# first with the second.
dump_core() {
    [ -n "$share" ] || { echo "# no share: not compared"; return 0; }
    have_guest pvh || return 1
    # -p leaves the guest paused, so that both files have the same state.
    xl save -p pvh file || return 1
    keep file dumped xlsave
    rm file
    xl dump-core pvh core || return 1
    keep core dumped core
}

. /payload/live.sh
. /payload/disks.sh
# /payload/list has the cases to run, in this order: names, guests, seconds at most.
while read -r name guest seconds <&3; do
    run "$name" "$guest" "$seconds" 3<&-
done 3</payload/list
# A check of the emulation itself: a crashed program makes all results worthless.
if dmesg | grep -E 'segfault|traps:'; then
    echo "✘ programs crashed in dom0"
    exit 1
fi
exit 0
