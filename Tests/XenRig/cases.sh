# The cases, in dom0: stock xl beside this project's own command line.
#
# Each case starts from an empty /run/case, prints one line, and leaves nothing; those that only save
# a guest leave it to the next one (have_guest), because booting one takes longer.
# /share, if it is there, gets the streams that the tests on the host read.
. /rig/rig.sh
cd /run || exit 1
varve=/payload/varve
passed=0
failed=0
share=
grep -q ' /share 9p' /proc/mounts && share=/share

fail() { echo "    $*"; return 1; }

# lost_guest: true if in the last attempt a guest died of what the emulated processor did to it: a
# triple fault, or a kernel's panic that nobody asked for.
#
# A guest in log-dirty mode lives here for some 300 to 4,000 reads of the log, whoever reads it: the
# case live-churn, which does nothing else, loses each of its guests. They die at any instruction:
# at a plain write to a page that they had read just before, or in the entry of an exception.
lost_guest() {
    xl dmesg | grep -q 'Triple fault' && return 0
    cat /var/log/xen/guest-*.log | grep 'Kernel panic' | grep -qv sysrq
}

# forget_guests: what became of guests so far does not count any more.
forget_guests() {
    xl dmesg -c >/dev/null
    for log in /var/log/xen/guest-*.log; do : >"$log"; done
}

# attempt COMMAND...: runs it from an empty /run/case; its words go to case.log.
attempt() {
    rm -rf /run/case
    mkdir -p /run/case
    cd /run/case || exit 1
    forget_guests
    "$varve" init store >/dev/null || exit 1
    "$@" >case.log 2>&1
}

# clean_up [KEPT]: what a case left running goes, but for a guest of this name.
clean_up() {
    killall -q -9 varve XenCases
    for domain in $(xl list | awk -v kept="$1" 'NR > 2 && $1 != kept { print $1 }'); do
        xl destroy "$domain"
    done
}

# have_guest KIND: the guest that the case before left, if it counts and has found no error; else a
# new one. A case that passes may leave its guest (see the end of this file).
have_guest() {
    if xl domid "$1" >/dev/null 2>&1; then
        wait_console "$1" 'writes=' 10 && [ "$(errors "$1")" -eq 0 ] && return 0
        echo "the guest that was left does not go on: a new one"
        xl destroy "$1"
    fi
    start_guest "$1" && settle "$1"
}

# run NAME COMMAND...: one case.
#
# /payload/only, if it is there, names the cases that run, as a pattern of grep -E.
#
# A case that lost a guest to the emulation is run again, twice at most, and that is said. Of the
# others that fail, two in all may be run once more, with what they said shown: the emulated machine
# stands still for seconds when the host has other work, and time-outs are of the guest's time.
second_chances=2
say_why() {
    tail -n 30 case.log | sed 's/^/    /'
    for log in /var/log/xen/guest-*.log; do tail -n 15 "$log" | sed "s|^|    ${log##*/}: |"; done
}
run() {
    case_name=$1
    shift
    [ ! -e /payload/only ] || echo "$case_name" | grep -qEf /payload/only || return 0
    start=$(now)
    for try in 1 2 3; do
        attempt "$@"
        status=$?
        [ $status -ne 0 ] && [ $try -lt 3 ] && lost_guest || break
        clean_up
        echo "    the emulation lost a guest; $case_name once more"
    done
    if [ $status -ne 0 ] && [ $second_chances -gt 0 ]; then
        second_chances=$((second_chances - 1))
        say_why
        clean_up
        echo "    case $case_name failed; once more"
        attempt "$@"
        status=$?
    fi
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        grep '^#' case.log | sed 's/^#/   /'
        clean_up "$kept"
        echo "✔ case $case_name passed ($(echo "$start $(now)" | awk '{ printf "%.1f", $2 - $1 }') s)"
    else
        failed=$((failed + 1))
        say_why
        clean_up
        echo "✘ case $case_name failed"
    fi
}

# restored NAME FILE FROM [TO]: starts a file with stock xl; the guest must go on counting between FROM
# and shortly after TO (or FROM), without an error. A guest that began anew would count from 0, one of another
# time from somewhere else: it writes 16 pages every 20 ms at most.
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
        [ $tries -gt 0 ] || fail "$1 stands still at $before" || return 1
        sleep 0.2
    done
    [ "$(errors "$1")" -eq 0 ] || fail "the guest found errors" || return 1
}

# settle NAME: lets the guest write for a while.
settle() {
    wait_console "$1" 'writes=[0-9][0-9][0-9]' 60
}

# A guest saved by stock xl, taken in, taken out, started by stock xl.
save_restore() {
    have_guest "$1" || return 1
    xl save "$1" file || return 1
    at=$(writes "$1")
    $varve import store file --lineage web || return 1
    [ -z "$share" ] || cat file >"$share/$1.xlsave"
    rm file
    $varve export store web file --format xl || return 1
    restored "$1" file "$at" || return 1
    rm file
    xl destroy "$1"
    # The same by pipe.
    : >"/var/log/xen/guest-$1.log"
    $varve export store web - --format xl | xl restore /dev/stdin || return 1
    wait_console "$1" 'writes=' 60 && goes_on "$1" || return 1
    $varve verify store
}

# Saves of a running guest, straight into a store; the second costs what changed.
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

# Stock Remus feeds the store; its sender is killed; the newest epoch and an older one are started.
remus() {
    have_guest pvh || return 1
    # What xl sends is kept as it is, for the tests on the host.
    xl remus -F -d -n -e -i 200 -s '' pvh \
        "tee /run/case/stream | $varve receive /run/case/store --lineage remus" >remus.log 2>&1 &
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
    [ -z "$share" ] || cat stream >"$share/remus.xlsave"
    rm stream
    count=$($varve log store --json | wc -l)
    echo "# epochs in the store: $count"
    [ "$count" -ge 6 ] || fail "only $count checkpoints" || return 1
    $varve verify store || return 1
    newest=
    for checkpoint in remus remus~4; do
        $varve export store $checkpoint file --format xl || return 1
        : >/var/log/xen/guest-pvh.log
        xl restore file || return 1
        wait_console pvh 'writes=' 60 || fail "$checkpoint says nothing" || return 1
        first=$(first_writes pvh)
        echo "# $checkpoint goes on at $first writes; the guest had come to $at"
        [ "$first" -le $((at + 4000)) ] || fail "too far" || return 1
        goes_on pvh || return 1
        rm file
        [ -z "$newest" ] || break
        newest=$first
        xl destroy pvh
    done
    [ "$first" -lt "$newest" ] || fail "the older epoch is not older"
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

# What stock xl writes of a guest, and what an export of the same guest says, side by side on the
# host: a core is compared there.
dump_core() {
    [ -n "$share" ] || { echo "# no share: not compared"; return 0; }
    have_guest pvh || return 1
    # Paused, the guest is the same for both; a saved guest stays paused with -p.
    xl save -p pvh file || return 1
    cat file >"$share/dumped.xlsave"
    rm file
    xl dump-core pvh core || return 1
    cat core >"$share/dumped.core"
}

. /payload/live.sh
# One PV guest for its cases, and one PVH guest for those that save it. Each of the others has a new
# one: the emulation lets a guest live for so many reads of the log only (see lost_guest), and from one
# that had been saved Remus got no epoch once.
kept=pv
run save-restore-pv save_restore pv
run live-pv live_pv
clean_up
kept=pvh
run save-restore-pvh save_restore pvh
run save-pipe save_pipe
clean_up
kept=
run remus remus
run migrate migrate
run live-words live_words
run live-compare live_compare
run live-pause live_pause
run live-times live_times
run live-restore live_restore
run live-revert live_revert
run live-kill live_kill
run live-meanwhile live_meanwhile
run live-full-disk live_full_disk
# A machine with room for it: XENRIG_MEM=3072 Scripts/xen-test --only live-memory
clean_up
[ "$(xl info | sed -n 's/^free_memory *: //p')" -lt 1100 ] || run live-memory live_memory
if [ -n "$long" ]; then
    run live-two-processors live_two_processors
    # Five minutes in xl dump-core.
    run dump-core dump_core
    run live-churn live_churn
fi
# The emulation itself: a program that crashed makes all of this worthless.
if dmesg | grep -E 'segfault|traps:'; then failed=$((failed + 1)); fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
