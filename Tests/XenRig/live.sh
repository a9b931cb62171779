# Cases of running domains: log-dirty capture, restore as a new domain, revert in place. Sourced by
# cases.sh. /payload/all asks for the long forms.
cases=/payload/XenCases
long=
[ ! -e /payload/all ] || long=1

# many SHORT LONG: how often something is done.
many() { if [ -n "$long" ]; then echo "$2"; else echo "$1"; fi; }

# unbroken NAME DEVICES: the guest counts without an error, its console shows nothing but its own
# lines since it was ready, and no device was taken down and set up again: its nodes are as before.
unbroken() {
    goes_on "$1" || return 1
    console "$1" | tr -d '\r' | sed '1,/dirtier: ready/d' | grep -v '^dirtier: ' | grep . \
        && { fail "the guest's console shows something"; return 1; }
    devices "$1" | cmp -s - "$2" || fail "the guest's devices changed" || return 1
}

# devices NAME: both ends of each device in xenstore: states, rings, event channels.
devices() {
    id=$(xl domid "$1")
    xenstore-ls "/local/domain/$id/device"
    xenstore-ls "/local/domain/$id/console"
    xenstore-ls "/local/domain/0/backend" 2>/dev/null
}

# A guest that writes all the time, checkpointed every 200 ms: each checkpoint is the full copy.
live_compare() {
    start_guest pvh && settle pvh || return 1
    devices pvh >devices
    $cases compare "$(xl domid pvh)" store "$(many 25 100)" 200 || return 1
    unbroken pvh devices || return 1
    $varve verify store
}

# The same of a guest with two processors: its own suspension takes half a minute here, where four
# virtual processors share two emulated ones.
live_two_processors() {
    start_guest pvh vcpus=2 && settle pvh || return 1
    $cases compare "$(xl domid pvh)" store 5 200 && goes_on pvh && $varve verify store
}

# The same by pause, which any guest takes. Xen may deliver an event to a paused domain after the
# copy, so that a page or two differ then; the guest's own check and restores are the proof.
live_pause() {
    start_guest pvh && settle pvh || return 1
    devices pvh >devices
    $varve xen checkpoint pvh store --pause --every 200ms --count 10 --json >lines || return 1
    [ "$(wc -l <lines)" -eq 10 ] || fail "not 10 lines" || return 1
    unbroken pvh devices || return 1
    $varve xen restore store pvh --name other 2>&1 | grep -q 'taken by pause' \
        || fail "a checkpoint by pause was started anew" || return 1
    $varve verify store || return 1
    # The memory goes back; whether the guest wakes hangs on timers that Xen does not give out.
    $varve xen revert pvh store pvh~5
}

# Pause and suspension, beside what stock tools take for the same guest in the same boot.
live_times() {
    start_guest pvh && settle pvh || return 1
    id=$(xl domid pvh)
    $varve xen checkpoint pvh store --every 200ms --count "$(many 30 100)" --json >lines || return 1
    # The first checkpoint is all of memory, as the first epoch of libxenguest is.
    sed 1d lines | sed 's/.*"dirtyPages":\([0-9]*\),"stillMicroseconds":\([0-9]*\),"suspendMicroseconds":\([0-9]*\).*/\1 \2 \3/' \
        >numbers
    bytes=$(sed 1d lines | sed 's/.*"bytesAdded":\([0-9]*\).*/\1/' | sort -n | middle)
    ours=$(awk '{ print $2 / 1000 }' numbers | sort -n | middle_and_max)
    suspend=$(awk '{ print $3 / 1000 }' numbers | sort -n | middle_and_max)
    echo "# varve: still $ours ms, suspend $suspend ms (p50, max);" \
        "$(awk '{ print $1 }' numbers | sort -n | middle) dirty pages, $bytes bytes a checkpoint"
    epochs=$($cases epochs "$id" "$(many 15 50)") || return 1
    echo "# libxenguest's Remus epochs into /dev/null: still ${epochs% * *} ms," \
        "suspend ${epochs#* * } ms"
    $cases watch "$id" 30 >watched &
    for i in 1 2; do xl save -c pvh /dev/stdout 2>/dev/null | cat >/dev/null; done
    wait
    read -r count saved _ <watched
    echo "# xl save -c: still $saved ms (p50 of $count)"
    echo "# ratios of p50: xl save -c / varve $(ratio "$saved" "${ours%% *}")," \
        "Remus epoch / varve $(ratio "${epochs%% *}" "${ours%% *}")"
    goes_on pvh
}

middle() { awk '{ v[NR] = $1 } END { print v[int(NR / 2) + 1] }'; }
middle_and_max() { awk '{ v[NR] = $1 } END { print v[int(NR / 2) + 1], v[NR] }'; }
ratio() { echo "$1 $2" | awk '{ printf "%.1f", $1 / $2 }' ; }

# Checkpoints of a running guest, started as new domains while it runs: each has the checkpoint's
# memory, and counts on from its own point.
live_restore() {
    start_guest pvh && settle pvh || return 1
    $varve xen checkpoint pvh store --every 300ms --count 40 || return 1
    for i in $(seq "$(many 4 20)"); do
        back=$((i * 17 % 40))
        at=$($cases wrote store "pvh~$back") || return 1
        : >"/var/log/xen/guest-new$i.log"
        $varve xen restore store "pvh~$back" --name "new$i" --paused || return 1
        $cases same "$(xl domid "new$i")" store "pvh~$back" || return 1
        xl unpause "new$i"
        wait_console "new$i" 'writes=' 60 || fail "new$i says nothing" || return 1
        first=$(first_writes "new$i")
        echo "pvh~$back had $at writes; new$i goes on at $first"
        [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] \
            || fail "new$i goes on at $first, its checkpoint had $at" || return 1
        goes_on "new$i" || return 1
        xl destroy "new$i"
    done
    $varve xen restore store pvh 2>&1 | grep -q "is there already" \
        || fail "a second domain got the name of one that runs" || return 1
    goes_on pvh
}

# Reverts of a running guest, in any order, with captures in between; then by the command line.
live_revert() {
    start_guest pvh && settle pvh || return 1
    devices pvh >devices
    $cases jump "$(xl domid pvh)" store "$(many 6 20)" 7 || return 1
    unbroken pvh devices || return 1
    for point in jump~2 jump jump~1; do
        at=$($cases wrote store $point)
        $varve xen revert pvh store $point || return 1
        # What it had printed before is gone, as the guest itself is.
        : >/var/log/xen/guest-pvh.log
        wait_console pvh 'writes=' 60 || fail "says nothing after the revert to $point" || return 1
        first=$(first_writes pvh)
        [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] \
            || fail "goes on at $first, $point had $at" || return 1
        goes_on pvh || return 1
    done
}

# The checkpointer is killed: the guest runs on within a second, the log is off, the next capture
# is complete, and the store is whole.
live_kill() {
    start_guest pvh && settle pvh || return 1
    id=$(xl domid pvh)
    slowest=0
    for moment in precopy held copying copied encoding; do
        $cases die "$id" store $moment
        after_kill || return 1
    done
    for i in $(seq "$(many 5 45)"); do
        $varve xen checkpoint pvh store --every 50ms >/dev/null 2>kill.log &
        checkpointer=$!
        usleep $((1500000 + (i * 7919 % 101) * 15000))
        kill -9 $checkpointer 2>/dev/null || { cat kill.log; fail "it had ended"; return 1; }
        after_kill || return 1
    done
    echo "# killed $(many 10 50) times; the guest ran again after $slowest ms at the latest"
    # A log that was left on would be refused here.
    $cases compare "$id" store 3 200 || return 1
    goes_on pvh && $varve verify store
}

after_kill() {
    took=$($cases running "$id" 1000) || fail "$took" || return 1
    [ "$took" -le "$slowest" ] || slowest=$took
    goes_on pvh || return 1
    # A guard whose guest was asked to suspend waits for it a minute.
    tries=700
    while ps -o args | grep -q '[x]en guard'; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "the guard does not end" || return 1
        sleep 0.1
    done
}

# What happens to a domain while it is captured: one sentence, and what was stored stays.
live_meanwhile() {
    start_guest pvh && settle pvh || return 1
    $varve xen checkpoint pvh store || return 1
    xl destroy pvh
    for what in $(many "destroy:precopy destroy:copying sysrq-c:precopy sysrq-o:encoding" \
        "destroy:precopy destroy:held destroy:copying destroy:copied destroy:encoding
         sysrq-c:precopy sysrq-c:encoding sysrq-o:precopy sysrq-o:encoding"); do
        moment=${what#*:}
        $varve xen restore store pvh >/dev/null || return 1
        id=$(xl domid pvh)
        case $what in
            destroy:*) command="xl destroy $id" ;;
            # The guest's kernel is told to crash, or to power off; it does so when it runs.
            sysrq-*) command="xl sysrq $id ${what:6:1}
                for i in \$(seq 200); do $cases running $id 0 >/dev/null 2>&1 || break; sleep 0.1; done" ;;
        esac
        $cases meanwhile "$id" store "$moment" "$command" >outcome || { cat outcome; return 1; }
        echo "# $what: $(cat outcome)"
        case $what:$(cat outcome) in
            *:encoding:'outcome: published') ;;
            destroy:*'there is no domain'*) ;;
            destroy:*'dying'*) ;;
            # Linux in a PVH domain ends a panic by a restart, which Xen takes for one.
            sysrq-c:precopy:*'has crashed'* | sysrq-c:precopy:*'reboots'*) ;;
            sysrq-o:precopy:*'has shut down'*) ;;
            *) fail "another outcome than $what should have" || return 1 ;;
        esac
        xl destroy "$id" 2>/dev/null
        $varve verify store >/dev/null || fail "the store is damaged" || return 1
    done
    # Nothing that was stored before is lost.
    : >/var/log/xen/guest-pvh.log
    $varve xen restore store pvh >/dev/null && wait_console pvh 'writes=' 60 && goes_on pvh
}

# The store's disk is full: one sentence, the guest runs, and with room the next one is complete.
live_full_disk() {
    start_guest pvh && settle pvh || return 1
    mkdir small
    mount -t tmpfs -o size=20m small small || return 1
    $varve init small/store || return 1
    $varve xen checkpoint pvh small/store --every 100ms --count 2000 >lines 2>full.log
    status=$?
    cat full.log
    [ $status -eq 1 ] || fail "exit status $status" || return 1
    grep -qi 'no space left' full.log || fail "it does not say that the disk is full" || return 1
    goes_on pvh || return 1
    mount -o remount,size=64m small
    before=$($varve log small/store --json | wc -l)
    echo "# full after $before checkpoints"
    $cases compare "$(xl domid pvh)" small/store 2 200 || return 1
    $varve verify small/store
    status=$?
    umount small
    return $status
}

# PV: libxenguest's stream. Debian's hypervisor does not log a PV guest's writes: all of memory each
# time. One that does (build-shadow-xen.sh): epochs of one live stream.
live_pv() {
    start_guest pv && settle pv || return 1
    devices pv >devices
    $varve xen doctor pv || return 1
    if $varve xen doctor pv | grep -q 'logs writes of PV'; then
        $varve xen checkpoint pv store --every 200ms --count "$(many 20 100)" --json >lines || return 1
        sed 1d lines | sed 's/.*"stillMicroseconds":\([0-9]*\).*/\1/' | sort -n >stills
        echo "# epochs of one live stream: still $(awk '{ print $1 / 1000 }' stills | middle_and_max) ms"
    else
        for i in 1 2; do $varve xen checkpoint pv store --json >>lines || return 1; done
        sed 's/.*"stillMicroseconds":\([0-9]*\).*/\1/' lines | sort -n >stills
        echo "# all memory each time: still $(awk '{ print $1 / 1000 }' stills | middle_and_max) ms"
    fi
    unbroken pv devices || return 1
    [ "$(tail -n 1 lines | sed 's/.*"pagesChanged":\([0-9]*\).*/\1/')" -lt 8000 ] \
        || fail "the last one stored everything anew" || return 1
    at=$($cases wrote store pv~1)
    : >/var/log/xen/guest-new.log
    $varve xen restore store pv~1 --name new || return 1
    wait_console new 'writes=' 60 || fail "it says nothing" || return 1
    first=$(first_writes new)
    [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] \
        || fail "goes on at $first, its checkpoint had $at" || return 1
    goes_on new && goes_on pv && $varve verify store
}

# Memory of the checkpointer of a 1 GiB guest: the page map, the ring, the index.
live_memory() {
    xl create -q /rig/pvh.cfg 'memory=1024' 'maxmem=1024' 'extra="console=hvc0 quiet mitigations=off dirtier.PAGES=100000 dirtier.BURST=200"' \
        || return 1
    wait_console pvh 'dirtier: ready' 300 || return 1
    $varve xen checkpoint pvh store --every 500ms --count 20 --json >lines 2>words &
    checkpointer=$!
    peak=0
    while peak_now=$(sed -n 's/^VmHWM: *\([0-9]*\) kB/\1/p' /proc/$checkpointer/status 2>/dev/null) \
        && [ -n "$peak_now" ]; do
        peak=$peak_now
        sleep 0.2
    done
    wait $checkpointer || { cat words; return 1; }
    cat words
    [ "$peak" -gt 0 ] || fail "the peak was not read" || return 1
    echo "# peak memory of the checkpointer of a 1 GiB guest: $((peak / 1024)) MiB, ring included"
    goes_on pvh
}

# What the commands say of this host, and of domains that are not there.
live_words() {
    $varve xen doctor || return 1
    start_guest pvh || return 1
    $varve xen list | grep -q 'pvh' || fail "list lacks the guest" || return 1
    $varve xen list --json | grep -q '"name":"pvh"' || fail "list --json lacks it" || return 1
    $varve xen doctor pvh || return 1
    $varve xen checkpoint nobody store 2>words && fail "there is no domain" && return 1
    cat words
    grep -q "there is no domain 'nobody'" words || return 1
    # Two checkpointers: the second is told, and the first goes on.
    # Each looks at 64 pages that the log calls unwritten.
    $varve xen checkpoint pvh store --every 100ms --count 40 --audit 64 >lines 2>&1 &
    sleep 3
    $varve init second >/dev/null
    $varve xen checkpoint pvh second 2>words && fail "two logs at once" && return 1
    cat words
    grep -q 'on already' words || return 1
    wait
    [ "$(grep -c '^[0-9a-f]' lines)" -eq 40 ] || { cat lines; fail "the first one ended"; return 1; }
    # A write through a grant that stays mapped: what the log says of it (grants.c).
    /payload/grants "$(xl domid pvh)" >said || return 1
    echo "# grants: $(cat said)"
    [ "$(cat said)" = "after a write 0, with FINAL 0, after the unmap 1" ] \
        || fail "not what decision record 0008 says" || return 1
    goes_on pvh
}

run live-words live_words
run live-compare live_compare
[ -z "$long" ] || run live-two-processors live_two_processors
run live-pause live_pause
run live-times live_times
run live-restore live_restore
run live-revert live_revert
run live-kill live_kill
run live-meanwhile live_meanwhile
run live-full-disk live_full_disk
run live-pv live_pv
# A machine with room for it: XENRIG_MEM=3072 Scripts/xen-test --only live-memory
[ "$(xl info | sed -n 's/^free_memory *: //p')" -lt 1100 ] || run live-memory live_memory
# What the emulation itself does to guests in log-dirty mode; proves nothing of this project.
#   Scripts/xen-test --all --only live-churn
live_churn() {
    for i in 1 2 3 4; do
        start_guest pvh && settle pvh || return 1
        echo "# reading the log alone: $($cases churn "$(xl domid pvh)" 5000)"
        xl destroy pvh
    done
}
[ -z "$long" ] || run live-churn live_churn
