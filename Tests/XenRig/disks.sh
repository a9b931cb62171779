# Cases of a guest with two disks on a thin pool (disks/pool.sh), which knows what is on them
# (disks/diskkeeper.c). Stock xl saves it; the disks are cut by dmsetup. Sourced by cases.sh.
[ ! -e /disks/pool.sh ] || . /disks/pool.sh

# have_disk_guest: uses the guest `disk` of the previous case, without snapshots; or makes all anew.
have_disk_guest() {
    if xl domid disk >/dev/null 2>&1 && [ -e /dev/mapper/pool ]; then
        drop_cuts
        storage linear || return 1
        wait_console disk 'writes=' 10 && [ "$(errors disk)" -eq 0 ] && return 0
        echo "the guest that was left does not go on: a new one"
        xl destroy disk
    fi
    make_pool || return 1
    disk_config disk a b
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120
}

# quiet_disks NAME: the guest counts without an error, and since it was ready its console has only
# the program's own lines: none of the kernel about I/O or file systems.
quiet_disks() {
    goes_on "$1" || { console "$1" | tail -n 20; return 1; }
    console "$1" | tr -d '\r' | awk '/^diskkeeper: ready/ { count = 0; next }
        NR > 1 && NF && !/^diskkeeper: seconds/ { line[count++] = $0 }
        END { for (i = 0; i < count; i++) print line[i]; exit count > 0 }' \
        || fail "the guest's console shows something"
}

# restore_disks NAME FILE CUT: starts a saved guest beside the others, on its own copy of a cut.
restore_disks() {
    copy_disks "$3" "$1" || return 1
    disk_config "$1" "$1_a" "$1_b"
    : >"/var/log/xen/guest-$1.log"
    xl restore "/run/$1.cfg" "$2" || return 1
    wait_console "$1" 'writes=' 60 || fail "the restored guest says nothing"
}

# agree MEMORY A B [HISTORY HISTORY], disagree ...: what diskcheck must find.
agree() { diskcheck "$@" >said; status=$?; cat said; [ $status -eq 0 ] || fail "diskcheck: $status"; }
disagree() {
    diskcheck "$@" >said
    status=$?
    tail -n 1 said
    [ $status -eq 1 ] || fail "diskcheck has not seen it: $status"
}
# reports MEASURE: its number in the last report.
reports() { tr ' ' '\n' <said | sed -n "s/^$1=//p" | tail -n 1; }

# The guest runs for 10 s, and what it reads is what it wrote.
disk_guest() {
    have_disk_guest || return 1
    for i in 1 2 3 4 5; do sleep 2 && quiet_disks disk || return 1; done
    echo "# $(console disk | tr -d '\r' | grep seconds= | tail -n 1)"
}

# Disks that are cut in the suspension are of the instant of the memory; others are not.
disk_cut() {
    have_disk_guest || return 1
    for point in first second; do
        save_and_cut disk $point.save $point && copy_disks $point $point || return 1
        agree $point.save /dev/mapper/${point}_a /dev/mapper/${point}_b || return 1
        echo "# $(reports committed) records, $(reports underway) of the next under way: all is there"
    done
    file_systems second || return 1
    agree second.save /dev/mapper/second_a /dev/mapper/second_b /run/mnt-a/history \
        /run/mnt-b/history || return 1
    unmount
    # Disks of before, of after, and one of each.
    disagree second.save /dev/mapper/first_a /dev/mapper/first_b || return 1
    [ "$(reports lost)" -gt 100 ] || fail "records of an older disk are not missed" || return 1
    disagree first.save /dev/mapper/second_a /dev/mapper/second_b || return 1
    [ "$(reports later)" -gt 100 ] || fail "records of a newer disk are not seen" || return 1
    disagree second.save /dev/mapper/first_a /dev/mapper/second_b || return 1
    [ "$(reports ahead)" -eq 1 ] || fail "B ahead of A is not seen" || return 1
    disagree second.save /dev/mapper/second_a /dev/mapper/first_b || return 1
    disagree second.save /dev/mapper/second_b /dev/mapper/second_a || return 1
    quiet_disks disk
}

# What was saved goes on beside the original, each on its own disks; then it ends in order.
disk_restore() {
    have_disk_guest || return 1
    save_and_cut disk file point || return 1
    at=$(diskcheck file | sed -n 's/.* committed=\([0-9]*\) .*/\1/p')
    restore_disks new file point || return 1
    first=$(first_writes new)
    echo "# saved with $at writes; the first line after the restore has $first"
    [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] || fail "it goes on elsewhere" \
        || return 1
    for i in 1 2 3; do sleep 1 && quiet_disks new && quiet_disks disk || return 1; done
    # The one processor is for the guest that ends.
    xl pause disk
    xl shutdown -w new >/dev/null 2>&1
    xl unpause disk
    console new | tail -n 3
    console new | grep -q 'diskkeeper: ended errors=0' || fail "it did not end in order" || return 1
    xl destroy new
    for volume in a b; do
        # Without replaying a journal: there is nothing to replay.
        /disks/bin/e2fsck -fn /dev/mapper/new_$volume >fsck.log 2>&1 && ! grep -q journal fsck.log \
            || { cat fsck.log; fail "the file system is not clean"; return 1; }
    done
    quiet_disks disk
}

# The same with slow disks, so that asynchronous writes are under way in the suspension.
disk_under_way() {
    have_disk_guest || return 1
    storage slow 300 || return 1
    sleep 3
    save_and_cut disk file point
    status=$?
    storage linear && [ $status -eq 0 ] || return 1
    restore_disks new file point || return 1
    # The restored guest has written since: the cut itself is compared.
    copy_disks point old && agree file /dev/mapper/old_a /dev/mapper/old_b || return 1
    echo "# $(reports underway) writes were under way"
    [ "$(reports underway)" -ge 8 ] || fail "too few for this case" || return 1
    for i in 1 2 3; do sleep 1 && quiet_disks new && quiet_disks disk || return 1; done
}

# The same disks made by LVM: the guest runs, and a snapshot by LVM is taken below it.
disk_lvm() {
    xl destroy disk 2>/dev/null
    make_lvm_pool || return 1
    disk_config disk rig-a rig-b
    start_disk_guest disk && sleep 3 && quiet_disks disk || return 1
    lvm lvcreate -q --type thin -n kept -kn rig/a || return 1
    sleep 2
    quiet_disks disk || return 1
    lvm lvs
    xl destroy disk
    drop_lvm_pool
}

# The guest itself notices disks of another instant.
disk_control() {
    have_disk_guest || return 1
    for point in first second; do save_and_cut disk $point.save $point && sleep 2 || return 1; done
    restore_disks older second.save first || return 1
    xl pause disk
    seen older || return 1
    restore_disks newer first.save second || return 1
    seen newer || return 1
    xl unpause disk
    quiet_disks disk
}
seen() {
    wait_console "$1" 'errors=[1-9]' 30 || fail "the guest has not noticed $1 disks" || return 1
    echo "# $1 disks: $(console "$1" | tr -d '\r' | grep -m 1 'memory knows')"
    xl destroy "$1"
}

# Where the checkpointer notes its cuts.
cuts=/run/cuts

# take COUNT [WORD...]: checkpoints of the guest with its disks, 200 ms apart, into lines.
take() {
    count=$1
    shift
    $varve xen checkpoint disk store --disk-state $cuts --every 200ms --count "$count" --json "$@" \
        >lines 2>words || { cat words; return 1; }
    [ "$(wc -l <lines)" -eq "$count" ] || fail "not $count lines"
}

# no_trace: no snapshot, device or journal entry of the checkpointer is left, and nothing is
# suspended.
no_trace() {
    left=$(ls $cuts/* 2>/dev/null | grep -v ':$'; ls /dev/mapper | grep varve-cut)
    [ -z "$left" ] || { echo "$left"; fail "something of a cut is left"; return 1; }
    for device in a b pool; do
        dmsetup info "$device" | grep -q 'State: *ACTIVE' || fail "$device is suspended" || return 1
    done
}

# whole CHECKPOINT: memory and disks of a checkpoint agree by the guest's own numbers, and each file
# system is clean after its journal was replayed.
whole() {
    # A raw image would have gigabytes of holes.
    $varve export store "$1" memory --format libxc >/dev/null || return 1
    for disk in xvda xvdb; do
        $varve export store "$1" $disk.img --volume $disk >/dev/null || return 1
        /disks/bin/e2fsck -fy -E journal_only $disk.img >fsck.log 2>&1
    done
    agree memory xvda.img xvdb.img || return 1
    for disk in xvda xvdb; do
        /disks/bin/e2fsck -fn $disk.img >fsck.log 2>&1 \
            || { cat fsck.log; fail "$1: the file system of $disk is not clean"; return 1; }
    done
    rm -f memory xvda.img xvdb.img
}

# middle KEY: the median of a key in lines.
middle() {
    sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" lines | sort -n \
        | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] " max " value[NR] }'
}

# Checkpoints of memory and disks of a running guest, 200 ms apart: each is of one instant.
live_disks() {
    have_disk_guest || return 1
    take "$(many 4 100)" || return 1
    no_trace && quiet_disks disk || return 1
    echo "# downtime $(middle downtimeMicroseconds) us, drain $(middle drainMicroseconds)," \
        "cut $(middle cutMicroseconds)"
    back=0
    # The export of one takes this emulator long.
    while [ $back -lt "$(many 2 100)" ]; do
        whole disk~$back || return 1
        back=$((back + 1))
    done
    # Memory of one with the disks of another is noticed.
    $varve export store disk memory --format libxc >/dev/null || return 1
    for disk in xvda xvdb; do
        $varve export store disk~2 $disk.img --volume $disk >/dev/null || return 1
    done
    disagree memory xvda.img xvdb.img || return 1
    rm -f memory xvda.img xvdb.img
    echo "# $back checkpoints: memory and disks agree, file systems clean"
    $varve stats store | sed 's/^/# /'
    $varve verify store
}

# A checkpoint goes on as a new domain beside the original, on disks of its own.
live_disks_restore() {
    have_disk_guest || return 1
    take 3 && no_trace || return 1
    $varve xen restore store disk --name new 2>words && fail "memory was started over other disks" \
        && return 1
    grep -q 'has disks' words || { cat words; return 1; }
    for back in $(many "1" "2 1 0"); do
        $varve export store disk~$back memory --format libxc || return 1
        at=$(diskcheck memory | sed -n 's/.* committed=\([0-9]*\) .*/\1/p')
        rm memory
        : >/var/log/xen/guest-new.log
        $varve xen restore store disk~$back --name new --disks /dev/mapper/pool || return 1
        wait_console new 'writes=' 60 || fail "the restored guest says nothing" || return 1
        first=$(first_writes new)
        echo "# restored from a checkpoint with $at writes, it goes on at $first"
        [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] || fail "it goes on elsewhere" \
            || return 1
        for i in 1 2 3; do sleep 1 && quiet_disks new && quiet_disks disk || return 1; done
        xl shutdown -w new >/dev/null 2>&1
        console new | grep -q 'diskkeeper: ended errors=0' || fail "it did not end in order" \
            || return 1
        xl destroy new
        for disk in xvda xvdb; do
            /disks/bin/e2fsck -fn /dev/mapper/new-$disk >fsck.log 2>&1 \
                && ! grep -q journal fsck.log \
                || { cat fsck.log; fail "the file system is not clean"; return 1; }
            dmsetup remove new-$disk
        done
    done
    quiet_disks disk
}

# The checkpointer is killed at any time: the guest runs, no disk stays suspended, and the next one
# removes what the dead one left.
live_disks_kill() {
    have_disk_guest || return 1
    kills=0
    while [ $kills -lt "$(many 4 20)" ]; do
        $varve xen checkpoint disk store --disk-state $cuts --every 200ms --json >lines 2>words &
        pid=$!
        tries=300
        until [ "$(wc -l <lines)" -ge 2 ]; do
            tries=$((tries - 1))
            [ $tries -gt 0 ] || { cat words; fail "there is no checkpoint"; return 1; }
            usleep 100000
        done
        usleep $(((kills * 37 % 20) * 10000))
        kill -9 $pid
        wait $pid 2>/dev/null
        usleep 1000000
        for device in a b; do
            dmsetup info $device | grep -q 'State: *ACTIVE' || fail "$device is suspended" || return 1
        done
        quiet_disks disk || return 1
        kills=$((kills + 1))
    done
    take 2 && no_trace && quiet_disks disk || return 1
    echo "# killed $kills times; nothing was left"
    $varve verify store
}
