# Cases of running domains: log-dirty capture, restore as a new domain, revert in place. Sourced by
# cases.sh. /payload/all selects the long forms.
long=
[ ! -e /payload/all ] || long=1

# many SHORT LONG: the number of repetitions.
many() { if [ -n "$long" ]; then echo "$2"; else echo "$1"; fi; }

# unbroken NAME DEVICES: the guest counts without an error, its console shows only its own lines
# since it was ready or reused, and no device was disconnected: the nodes are as before.
unbroken() {
    goes_on "$1" || return 1
    # The first line of a reused guest may be incomplete.
    console "$1" | tr -d '\r' | awk '/^dirtier: ready/ { count = 0; next }
        NR > 1 && NF && !/^dirtier: / { line[count++] = $0 }
        END { for (i = 0; i < count; i++) print line[i]; exit count > 0 }' \
        || fail "the guest's console shows something" || return 1
    devices "$1" | cmp -s - "$2" || fail "the guest's devices changed" || return 1
}

# began NAME COUNT: the guest continues from that count of writes, or from a slightly larger one.
began() {
    wait_console "$1" 'writes=' 60 || fail "$1 says nothing" || return 1
    first=$(first_writes "$1")
    echo "$1 goes on at $first; its checkpoint had $2 writes"
    [ "$first" -ge "$2" ] && [ "$first" -le $(($2 + 4000)) ] \
        || fail "$1 goes on at $first, its checkpoint had $2"
}

# devices NAME: both ends of each device in xenstore: states, rings, event channels.
devices() {
    id=$(xl domid "$1")
    xenstore-ls "/local/domain/$id/device"
    xenstore-ls "/local/domain/$id/console"
    xenstore-ls "/local/domain/0/backend" 2>/dev/null
}

# Everything once: the short form for another version of Xen.
tour() {
    $varve xen doctor >words || return 1
    cat words
    grep -qx "host: hypervisor: good: Xen $running" words || fail "not Xen $running" || return 1
    have_guest pvh || return 1
    devices pvh >devices
    $cases compare "$(xl domid pvh)" store 5 200 || return 1
    unbroken pvh devices || return 1
    at=$($cases wrote store compare~2) || return 1
    $varve xen restore store compare~2 --name new --paused || return 1
    $cases same "$(xl domid new)" store compare~2 || return 1
    xl unpause new
    began new "$at" && goes_on new || return 1
    xl destroy new
    at=$($cases wrote store compare~1)
    $varve xen revert pvh store compare~1 || return 1
    : >/var/log/xen/guest-pvh.log
    began pvh "$at" && goes_on pvh && $varve verify store || return 1
    # A stream of an older Xen starts here; the machine with that version wrote it.
    [ -n "$share" ] && [ -e "$share/pvh-4.17.xlsave" ] \
        || { echo "# there is no stream of an older Xen to start"; return 0; }
    at=$($varve import store "$share/pvh-4.17.xlsave" --lineage older >/dev/null \
        && $cases wrote store older) || return 1
    $varve xen restore store older --name older || return 1
    began older "$at" && goes_on older || return 1
    echo "# Xen $running goes on with what Xen 4.17 saved"
    xl destroy older
}

# A checkpoint of a newer Xen is refused before xl is called.
newer_refused() {
    $varve export store "$1" newer --format libxc || return 1
    # The domain header, after the image header of 24 bytes, ends with the minor version.
    next=4.$((${running#*.} + 1))
    printf "\\$(printf %o "${next#*.}")" | dd of=newer bs=1 seek=36 conv=notrunc 2>/dev/null
    $varve import store newer --lineage newer || return 1
    rm newer
    $varve xen restore store newer 2>words && fail "a newer Xen's stream was started" && return 1
    cat words
    grep -q "was taken under Xen $next, this host runs $running" words
}

# A guest that writes all the time, checkpointed every 200 ms: each checkpoint equals a full copy.
live_compare() {
    have_guest pvh || return 1
    devices pvh >devices
    $cases compare "$(xl domid pvh)" store "$(many 6 100)" 200 || return 1
    unbroken pvh devices || return 1
    $varve verify store
}

# The same for a guest with two processors.
live_two_processors() {
    xl destroy pvh 2>/dev/null
    start_guest pvh vcpus=2 && settle pvh || return 1
    $cases compare "$(xl domid pvh)" store 5 200 && goes_on pvh && $varve verify store || return 1
    xl destroy pvh
}

# The same by pause, which works for any guest. Xen may deliver an event to a paused domain after
# the copy, so a page or two may differ; the guest's own check and restores are the proof.
live_pause() {
    have_guest pvh || return 1
    devices pvh >devices
    $varve xen checkpoint pvh store --pause --every 200ms --count 6 --json >lines || return 1
    [ "$(wc -l <lines)" -eq 6 ] || fail "not 6 lines" || return 1
    unbroken pvh devices || return 1
    $varve xen restore store pvh --name other 2>&1 | grep -q 'taken by pause' \
        || fail "a checkpoint by pause was started anew" || return 1
    $varve verify store || return 1
    $varve xen revert pvh store pvh~3 || return 1
    : >/var/log/xen/guest-pvh.log
    wait_console pvh 'writes=' 60 || fail "the guest sleeps on after a revert" || return 1
    $cases wake "$(xl domid pvh)" store "$(many 4 20)" 3 || return 1
    goes_on pvh
}

# Pause and suspension, compared with stock tools for the same guest in the same boot.
live_times() {
    have_guest pvh || return 1
    id=$(xl domid pvh)
    $varve xen checkpoint pvh store --every 200ms --count "$(many 11 100)" --json >lines || return 1
    # The first checkpoint copies all of memory, as the first epoch of libxenguest does.
    sed 1d lines | sed 's/.*"dirtyPages":\([0-9]*\),"downtimeMicroseconds":\([0-9]*\),"suspendMicroseconds":\([0-9]*\).*/\1 \2 \3/' \
        >numbers
    bytes=$(sed 1d lines | sed 's/.*"bytesAdded":\([0-9]*\).*/\1/' | sort -n | middle)
    ours=$(awk '{ print $2 / 1000 }' numbers | sort -n | middle_and_max)
    suspend=$(awk '{ print $3 / 1000 }' numbers | sort -n | middle_and_max)
    echo "# varve: downtime $ours ms, suspend $suspend ms (p50, max);" \
        "$(awk '{ print $1 }' numbers | sort -n | middle) dirty pages, $bytes bytes a checkpoint"
    epochs=$($cases epochs "$id" "$(many 5 50)") || return 1
    echo "# libxenguest's Remus epochs into /dev/null: downtime ${epochs% * *} ms," \
        "suspend ${epochs#* * } ms"
    save='xl save -c pvh /dev/stdout 2>/dev/null | cat >/dev/null'
    $cases watch "$id" "$(many "$save" "$save; $save; $save")" >watched || { cat watched; return 1; }
    read -r count saved _ <watched
    echo "# xl save -c: downtime $saved ms (p50 of $count)"
    echo "# ratios of p50: xl save -c / varve $(ratio "$saved" "${ours%% *}")," \
        "Remus epoch / varve $(ratio "${epochs%% *}" "${ours%% *}")"
    goes_on pvh
}

middle() { awk '{ v[NR] = $1 } END { print v[int(NR / 2) + 1] }'; }
middle_and_max() { awk '{ v[NR] = $1 } END { print v[int(NR / 2) + 1], v[NR] }'; }
ratio() { echo "$1 $2" | awk '{ printf "%.1f", $1 / $2 }' ; }

# Checkpoints of a running guest, started as new domains while it runs: each has the checkpoint's
# memory, and continues counting from there.
live_restore() {
    have_guest pvh || return 1
    count=$(many 10 40)
    $varve xen checkpoint pvh store --every 300ms --count "$count" || return 1
    for i in $(seq "$(many 2 20)"); do
        back=$((i * 17 % count))
        at=$($cases wrote store "pvh~$back") || return 1
        : >"/var/log/xen/guest-new$i.log"
        $varve xen restore store "pvh~$back" --name "new$i" --paused || return 1
        $cases same "$(xl domid "new$i")" store "pvh~$back" || return 1
        xl unpause "new$i"
        began "new$i" "$at" && goes_on "new$i" || return 1
        xl destroy "new$i"
    done
    $varve xen restore store pvh 2>&1 | grep -q "exists already" \
        || fail "a second domain got the name of one that runs" || return 1
    goes_on pvh
}

# Reverts of a running guest, in any order, with captures in between; then by the command line.
live_revert() {
    have_guest pvh || return 1
    devices pvh >devices
    $cases jump "$(xl domid pvh)" store "$(many 5 20)" 7 || return 1
    unbroken pvh devices || return 1
    for point in $(many jump~2 "jump~2 jump jump~1"); do
        at=$($cases wrote store $point)
        $varve xen revert pvh store $point || return 1
        # Its earlier output belongs to a state that is gone.
        : >/var/log/xen/guest-pvh.log
        began pvh "$at" && goes_on pvh || return 1
    done
}

# A toolstack in C on libxl, with libvarve in its process (Examples/embed-libxl). A checkpoint is
# started beside the guest, and the guest goes back to it. In each checkpoint all of the guest's
# pages are of one instant.
live_libxl() {
    toolstack=/payload/embed-libxl
    mkdir c
    /payload/c-cases c wrong_xen >words || { cat words; return 1; }
    grep -qx 'wrong_xen: in dom0' words || fail "the cases from C are not in dom0" || return 1
    have_guest pvh || return 1
    devices pvh >devices
    $toolstack checkpoint pvh store "$(many 4 40)" || return 1
    unbroken pvh devices || return 1
    at=$($cases wrote store pvh~2) || return 1
    : >/var/log/xen/guest-new.log
    $toolstack restore store pvh~2 new || return 1
    $cases same "$(xl domid new)" store pvh~2 || return 1
    xl unpause new
    began new "$at" && goes_on new || return 1
    xl destroy new
    # It must have left the checkpoint far behind, or `began` would say nothing.
    eventually "the guest stays near its checkpoint" eval '[ "$(writes pvh)" -gt '$((at + 8000))' ]' \
        || return 1
    $toolstack revert pvh store pvh~2 || return 1
    : >/var/log/xen/guest-pvh.log
    began pvh "$at" && goes_on pvh || return 1
    $cases written store pvh && goes_on pvh
}

# The toolstack is killed: its guard, the same program, lets the guest go on.
live_libxl_kill() {
    toolstack=/payload/embed-libxl
    have_guest pvh || return 1
    id=$(xl domid pvh)
    $toolstack checkpoint pvh store 1000 >lines 2>kill.log &
    killed=$!
    wait_file lines 30 || { cat kill.log; fail "no checkpoint came"; return 1; }
    took=$($cases kill "$id" $killed) || { echo "$took"; return 1; }
    wait 2>/dev/null
    cat kill.log
    echo "# killed after $(wc -l <lines) checkpoints: the guest was paused for ${took%% *} ms after it"
    [ "${took%% *}" -le 1000 ] || fail "the guest was paused too long" || return 1
    goes_on pvh || return 1
    # The next session is refused if the log was left on.
    $toolstack checkpoint pvh store 1 >words || { cat words; return 1; }
    grep '^before this: the checkpointer of domain' words \
        || { cat words; fail "what the guard did is not told"; return 1; }
    $cases compare "$id" store 2 200 && goes_on pvh && $varve verify store
}

# The checkpointer is killed: the guest runs again within a second, the log is off, the next capture
# is complete, and the store is whole.
live_kill() {
    have_guest pvh || return 1
    id=$(xl domid pvh)
    wanted=$(many 8 50)
    killed=0
    while [ $killed -lt "$wanted" ]; do
        kill_once $killed || { cat kill.log; return 1; }
        killed=$((killed + 1))
    done
    # This would fail if the log had been left on.
    $cases compare "$id" store 3 200 || return 1
    goes_on pvh || return 1
    awk '{ print $1 }' watched | sort -n >downtimes
    awk '{ print $2 }' watched | sort -n >ends
    awk '$1 == 0' watched | wc -l >unheld
    echo "# killed $killed times; the guest was paused after the death for" \
        "$(middle_and_max <downtimes) ms (p50, max); $(cat unheld) times it did not"
    echo "# the guard was done $(middle_and_max <ends) ms after it; it resumed the guest" \
        "$(grep -c 'was resumed' guards) times"
    [ "$(tail -n 1 downtimes)" -le 1000 ] || fail "the guest was paused too long" || return 1
    $varve verify store
}

# kill_once NUMBER: one kill; the first five at the named moments, then at random ones.
kill_once() {
    case $1 in
        0) moment=precopy ;; 1) moment=held ;; 2) moment=copying ;; 3) moment=copied ;;
        4) moment=encoding ;; *) moment= ;;
    esac
    if [ -n "$moment" ]; then
        $cases die "$id" store $moment >kill.log 2>&1 &
        took=$($cases death "$id" $!)
    else
        $varve xen checkpoint pvh store --every 50ms >kill.lines 2>kill.log &
        checkpointer=$!
        # A quarter of them during the first checkpoint, which copies everything.
        [ $(($1 % 4)) -eq 0 ] || wait_file kill.lines 30 || return 1
        usleep $((($1 * 7919 % 101) * 10000))
        took=$($cases kill "$id" $checkpointer)
    fi || { echo "$took"; return 1; }
    # The shell reports that a process was killed.
    wait 2>/dev/null
    cat kill.log >>guards
    goes_on pvh || return 1
    echo "$took" | tee -a watched
}

# Changes to a domain while it is captured: one sentence is printed, and stored checkpoints are
# kept.
live_meanwhile() {
    have_guest pvh || return 1
    $varve xen checkpoint pvh store || return 1
    xl destroy pvh
    for what in $(many "destroy:precopy destroy:copying crash:precopy poweroff:precopy" \
        "destroy:precopy destroy:held destroy:copying destroy:copied destroy:encoding
         crash:precopy crash:encoding poweroff:precopy poweroff:encoding"); do
        moment=${what#*:}
        $varve xen restore store pvh >/dev/null || return 1
        id=$(xl domid pvh)
        # The guest's kernel is told to crash, or to power off; it does so while it runs.
        case $what in
            destroy:*) command="xl destroy $id"; end=gone ;;
            crash:*) command="xl sysrq $id c; $cases ended $id 20000"; end='crash\|reboot' ;;
            poweroff:*) command="xl shutdown $id; $cases ended $id 20000"; end=powerOff ;;
        esac
        $cases meanwhile "$id" store "$moment" "$command" >outcome || { cat outcome; return 1; }
        ended=$($cases ended "$id" 0)
        echo "$ended" | grep -qx "$end" || fail "$what: the domain's end: $ended" || return 1
        echo "# $what: $(grep '^outcome' outcome)"
        case $what:$(grep '^outcome' outcome) in
            *:encoding:'outcome: published') ;;
            destroy:*'there is no domain'*) ;;
            destroy:*'dying'*) ;;
            # Linux in a PVH domain ends a panic with a restart, which Xen reports as a reboot.
            crash:precopy:*'has crashed'* | crash:precopy:*'reboots'*) ;;
            poweroff:precopy:*'has shut down'*) ;;
            *) fail "another outcome than $what should have" || return 1 ;;
        esac
        xl destroy "$id" 2>/dev/null
        $varve verify store >/dev/null || fail "the store is damaged" || return 1
    done
    # Nothing that was stored before is lost.
    : >/var/log/xen/guest-pvh.log
    $varve xen restore store pvh >/dev/null && wait_console pvh 'writes=' 60 && goes_on pvh
}

# The store's disk is full: one sentence is printed, the guest runs, and with free space the next
# capture is complete.
live_full_disk() {
    have_guest pvh || return 1
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

# PV: libxenguest's stream. Debian's hypervisor does not log a PV guest's writes: every capture
# copies all memory. With one that does (build-shadow-xen.sh): epochs of one live stream.
live_pv() {
    have_guest pv || return 1
    devices pv >devices
    $varve xen doctor pv || return 1
    if $varve xen doctor pv | grep -q 'logs writes of PV'; then
        $varve xen checkpoint pv store --every 200ms --count "$(many 20 100)" --json >lines || return 1
        sed 1d lines | sed 's/.*"downtimeMicroseconds":\([0-9]*\).*/\1/' | sort -n >downtimes
        echo "# epochs of one live stream: downtime $(awk '{ print $1 / 1000 }' downtimes | middle_and_max) ms"
    else
        for i in 1 2; do $varve xen checkpoint pv store --json >>lines || return 1; done
        sed 's/.*"downtimeMicroseconds":\([0-9]*\).*/\1/' lines | sort -n >downtimes
        echo "# all memory each time: downtime $(awk '{ print $1 / 1000 }' downtimes | middle_and_max) ms"
    fi
    unbroken pv devices || return 1
    [ "$(tail -n 1 lines | sed 's/.*"pagesChanged":\([0-9]*\).*/\1/')" -lt 8000 ] \
        || fail "the last one stored everything anew" || return 1
    at=$($cases wrote store pv~1)
    : >/var/log/xen/guest-new.log
    $varve xen restore store pv~1 --name new || return 1
    began new "$at" && goes_on new && goes_on pv && $varve verify store || return 1
    xl destroy new
    # It goes back as another domain of the same name.
    was=$(xl domid pv)
    $varve xen revert pv store pv~1 || return 1
    # Its earlier output belongs to a domain that is gone.
    : >/var/log/xen/guest-pv.log
    [ "$(xl domid pv)" -ne "$was" ] || fail "it is the same domain" || return 1
    began pv "$at" && goes_on pv
}

# Memory of the checkpointer of a 1 GiB guest: the page map, the staging pool, the index.
live_memory() {
    xl destroy pvh 2>/dev/null
    xl create -q /rig/pvh.cfg 'memory=1024' 'maxmem=1024' 'extra="console=hvc0 quiet mitigations=off dirtier.PAGES=100000 dirtier.BURST=16 dirtier.TICK=50"' \
        || return 1
    wait_console pvh 'dirtier: ready' 300 || return 1
    $cases memory $varve xen checkpoint pvh store --every 500ms --count 4 >held \
        || { cat held; return 1; }
    cat held
    [ "$($varve log store --json | wc -l)" -eq 4 ] || fail "not 4 checkpoints" || return 1
    read -r total ring files rest <held
    echo "# a 1 GiB guest: the checkpointer held $((total / 1024)) MiB at its worst:" \
        "ring $((ring / 1024)), program and index $((files / 1024)), the rest $((rest / 1024)) MiB"
    goes_on pvh || return 1
    xl destroy pvh
}

# Messages of the commands about this host, and about domains that do not exist.
live_words() {
    $varve xen doctor || return 1
    have_guest pvh || return 1
    $varve xen list | grep -q 'pvh' || fail "list lacks the guest" || return 1
    $varve xen list --json | grep -q '"name":"pvh"' || fail "list --json lacks it" || return 1
    $varve xen doctor pvh || return 1
    $varve xen checkpoint nobody store 2>words && fail "there is no domain" && return 1
    cat words
    grep -q "there is no domain 'nobody'" words || return 1
    # Two checkpointers: the second is refused, and the first continues. Each audits 64 pages that
    # the log reports as unwritten.
    $varve xen checkpoint pvh store --every 100ms --count 60 --audit 64 >lines 2>&1 &
    first=$!
    wait_file lines 60
    $varve init second >/dev/null
    $varve xen checkpoint pvh second 2>words && fail "two logs at once" && return 1
    cat words
    grep -q "already owns domain $(xl domid pvh)" words || return 1
    wait $first || return 1
    [ "$(grep -c '^[0-9a-f]' lines)" -eq 60 ] || { cat lines; fail "the first one ended"; return 1; }
    newer_refused pvh || return 1
    # A write through a grant that stays mapped, and its effect on the log (grants.c).
    /payload/grants "$(xl domid pvh)" >said || return 1
    echo "# grants: $(cat said)"
    [ "$(cat said)" = "after a write 0, with FINAL 0, after the unmap 1" ] \
        || fail "not what decision record 0008 says" || return 1
    goes_on pvh
}

# One owner: a second one is refused, in the same process and in another, and the first continues; a
# log that is turned off by another tool is detected, and every page is compared.
live_owner() {
    have_guest pvh || return 1
    devices pvh >devices
    $varve init second >/dev/null || return 1
    $cases owner "$(xl domid pvh)" store "$varve xen checkpoint pvh second" || return 1
    unbroken pvh devices || return 1
    # The domain has no owner now.
    $varve xen checkpoint pvh second && $varve verify store && $varve verify second
}

# xl's process for a domain's end ends at the first suspension; Varve's monitor takes its place, and
# does what the configuration says, also after a restart and a revert.
live_monitor() {
    xl destroy pvh 2>/dev/null
    rm -f /var/log/xen/varve-pvh.log
    start_guest pvh 'on_poweroff = "destroy"' 'on_reboot = "restart"' && settle pvh || return 1
    monitored "xl's process" || return 1
    $varve xen checkpoint pvh store || return 1
    eventually "xl's process is still there" eval "! ps | grep -q '[x]l create'" || return 1
    monitored 'already monitors' || return 1
    first=$(xl domid pvh)
    : >/var/log/xen/guest-pvh.log
    xl reboot pvh || return 1
    eventually "it was not started again" new_domain "$first" || return 1
    wait_console pvh 'dirtier: ready' 120 && settle pvh || return 1
    monitored 'already monitors' || return 1
    $varve xen checkpoint pvh store && settle pvh && $varve xen revert pvh store pvh || return 1
    goes_on pvh && xl shutdown pvh || return 1
    eventually "it was not destroyed" eval '! xl domid pvh >/dev/null 2>&1' || return 1
    eventually "the monitor is still there" eval "! ps | grep -q '[x]en monitor'" || return 1
    sed 's/^/# /' /var/log/xen/varve-pvh.log
    [ "$(wc -l </var/log/xen/varve-pvh.log)" -eq 2 ] || fail "not two sentences in its log"
}
# monitored WORDS: what the doctor says of the process that waits for the domain's end.
monitored() {
    $varve xen doctor pvh | grep "monitor: good: .*$1" || { $varve xen doctor pvh; fail "no $1"; }
}
# eventually COMPLAINT COMMAND...: waits 60 s until the command succeeds.
eventually() {
    complaint=$1
    shift
    tries=300
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "$complaint" || return 1
        sleep 0.2
    done
}
new_domain() { now_id=$(xl domid pvh 2>/dev/null) && [ "$now_id" -ne "$1" ]; }

# The service as systemd runs it, with a socket that keeps what it notifies: it takes checkpoints,
# waits when the guest is destroyed, goes on with the next guest of the name, and ends by SIGTERM.
live_serve() {
    have_guest pvh || return 1
    $varve init served || return 1
    cat >web.conf <<END
domain = pvh
store = /run/case/served
lineage = web
interval = 500ms
keep-last = 50
audit = 16
metrics = /run/case/web.prom
END
    { cat web.conf && echo 'wait = soon'; } >wrong.conf
    $varve xen serve web --config wrong.conf 2>words
    status=$?
    cat words
    [ $status -eq 2 ] || fail "exit status $status with a wrong configuration" || return 1
    grep -q 'wrong.conf:8: wait = soon' words || fail "the line is not named" || return 1
    /payload/notes notify >notes &
    recorder=$!
    eventually "no socket" [ -S notify ] || return 1
    NOTIFY_SOCKET=/run/case/notify WATCHDOG_USEC=15000000 \
        $varve xen serve web --config web.conf >served.log 2>&1 &
    server=$!
    served_goes_on && goes_on pvh || { cat served.log; return 1; }
    [ "$(metric varve_domain_up)" = 1 ] || fail "the domain is not up" || return 1
    xl destroy pvh
    eventually "the end was not noticed" eval '[ "$(metric varve_domain_up)" = 0 ]' || return 1
    [ -d "/proc/$server" ] || { cat served.log; fail "the service has ended"; return 1; }
    start_guest pvh && settle pvh || return 1
    served_goes_on && goes_on pvh || { cat served.log; return 1; }
    kill -TERM $server
    wait $server
    status=$?
    kill $recorder
    sed 's/^/# /' served.log
    [ $status -eq 0 ] || fail "exit status $status" || return 1
    grep -q 'has ended; lineage .web. goes on' served.log || fail "the end is not told" || return 1
    grep -q 'resumes lineage .web. after' served.log || fail "it did not resume" || return 1
    grep -q 'has another UUID' served.log || fail "another guest is not told of" || return 1
    for note in 'READY=1' 'WATCHDOG=1' 'STOPPING=1' 'STATUS=waits for domain pvh' \
        'STATUS=domain pvh .*: checkpoint .*, downtime'; do
        grep -qx "$note.*" notes || { cat notes; fail "no note $note"; return 1; }
    done
    cat web.prom
    [ "$(metric varve_domain_up)" = 0 ] || fail "the domain is called up" || return 1
    [ "$(metric varve_downtime_seconds_count)" = "$(metric varve_checkpoints_total)" ] \
        || fail "not all downtimes are counted" || return 1
    ! grep -q varve_failures_total web.prom || fail "something failed" || return 1
    # It left no guard and no log; the lineage is one, and whole.
    ! ps | grep -q '[x]en guard' || fail "a guard is left" || return 1
    $varve xen checkpoint pvh store && goes_on pvh || return 1
    count=$($varve log served --lineage web --json | wc -l)
    echo "# $(metric varve_checkpoints_total) checkpoints by the service, $count are kept"
    [ "$count" -ge 6 ] && [ "$count" -le 50 ] || fail "$count checkpoints are kept" || return 1
    $varve verify served
}
# metric NAME: its value in the service's file.
metric() { sed -n "s/^$1{[^}]*} //p" web.prom 2>/dev/null; }
# served_goes_on: the service has taken three checkpoints more, and the domain's audit found nothing.
served_goes_on() {
    wanted=$(metric varve_checkpoints_total)
    wanted=$((${wanted:-0} + 3))
    eventually "no checkpoints" eval '[ "$(metric varve_checkpoints_total || echo 0)" -ge '"$wanted"' ] 2>/dev/null'
}

# The effect of the emulation itself on guests in log-dirty mode; it proves nothing about Varve.
#   Scripts/xen-test --all --only live-churn
live_churn() {
    for i in 1 2 3 4; do
        have_guest pvh || return 1
        echo "# reading the log alone: $($cases churn "$(xl domid pvh)" 5000)"
        xl destroy pvh
    done
}
