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

# The disks are LVM's thin volumes: the guest runs, and a snapshot by LVM is taken below it. Its
# checkpoints go on as new domains, on new volumes in LVM's pool and on snapshots of a kept cut, and
# LVM's own list stays as it was.
disk_lvm() {
    xl destroy disk 2>/dev/null
    make_lvm_pool || return 1
    disk_config disk rig-a rig-b
    start_disk_guest disk && sleep 3 && quiet_disks disk || return 1
    lvm lvcreate -q --type thin -n kept -kn rig/a || return 1
    sleep 2
    quiet_disks disk || return 1
    lvm lvs --noheadings -o lv_name,thin_id >before
    pool=/dev/mapper/rig-pool-tpool
    take 3 --keep-cut && whole disk && whole disk~1 || return 1
    # Written from the repository: an older one.
    restored_disks disk~2 || return 1
    # The cut of the newest one stands.
    at=$(knows disk) || return 1
    : >/var/log/xen/guest-new.log
    began=$(now)
    $varve xen restore store disk --name new --disks $pool --snapshots --disk-state $cuts \
        || return 1
    echo "# from snapshots of the kept cut: started in" \
        "$(echo "$began $(now)" | awk '{ printf "%.1f", $2 - $1 }') s"
    goes_on_new disk || return 1
    $varve xen restore store disk~1 --name new --disks $pool --snapshots --disk-state $cuts \
        2>words && fail "snapshots of a cut that is gone" && return 1
    cat words
    grep -q 'does not stand any more; write the disk from the repository' words || return 1
    # The next one continues from the kept cut, and drops it.
    take 1 && [ -z "$(ls $cuts/*)" ] && whole disk && quiet_disks disk || return 1
    lvm lvs --noheadings -o lv_name,thin_id >after
    cmp before after || { cat before after; fail "LVM's list is another one"; return 1; }
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
diskdeath=/disks/bin/diskdeath

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
    for device in a b pool pool_data; do
        [ ! -e "/dev/mapper/$device" ] || dmsetup info "$device" | grep -q 'State: *ACTIVE' \
            || fail "$device is suspended" || return 1
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

# middle_of KEY: the median and the maximum of a key in lines.
middle_of() {
    sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" lines | sort -n \
        | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] " max " value[NR] }'
}

# Checkpoints of memory and disks of a running guest, 200 ms apart: each is of one instant.
live_disks() {
    have_disk_guest || return 1
    take "$(many 4 100)" || return 1
    no_trace && quiet_disks disk || return 1
    echo "# downtime $(middle_of downtimeMicroseconds) us, drain $(middle_of drainMicroseconds)," \
        "cut $(middle_of cutMicroseconds)"
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

# restored_disks CHECKPOINT: starts a checkpoint as the domain `new`, on new volumes of the pool. It
# goes on at its count without an error, beside the original; it ends in order, and each of its file
# systems is clean without replaying a journal.
restored_disks() {
    at=$(knows "$1") || return 1
    : >/var/log/xen/guest-new.log
    $varve xen restore store "$1" --name new --disks "${pool:-/dev/mapper/pool}" || return 1
    goes_on_new "$1"
}
# knows CHECKPOINT: how many writes its memory knows as done.
knows() {
    $varve export store "$1" memory --format libxc >/dev/null || return 1
    diskcheck memory | sed -n 's/.* committed=\([0-9]*\) .*/\1/p'
    rm memory
}
# goes_on_new CHECKPOINT: the rest of it.
goes_on_new() {
    wait_console new 'writes=' 60 || fail "the restored guest says nothing" || return 1
    first=$(first_writes new)
    [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] || fail "it goes on elsewhere" \
        || return 1
    for i in 1 2 3; do sleep 1 && quiet_disks new && quiet_disks disk || return 1; done
    xl shutdown -w new >/dev/null 2>&1
    console new | grep -q 'diskkeeper: ended errors=0' || fail "it did not end in order" || return 1
    if console new | grep -i 'error' | grep -v 'errors=0'; then
        fail "its console has an error"
        return 1
    fi
    xl destroy new
    for disk in xvda xvdb; do
        /disks/bin/e2fsck -fn /dev/mapper/new-$disk >fsck.log 2>&1 && ! grep -q journal fsck.log \
            || { cat fsck.log; fail "the file system is not clean"; return 1; }
        id=$(thin_of new-$disk)
        dmsetup remove --retry new-$disk
        dmsetup message "${pool:-/dev/mapper/pool}" 0 "delete $id" || return 1
    done
    echo "# $1, with $at writes, goes on at $first; ended in order, file systems clean"
}

# Checkpoints at any time go on as new domains beside the original, on disks of their own.
live_disks_restore() {
    have_disk_guest || return 1
    wanted=$(many 1 20)
    take 3 && no_trace || return 1
    $varve xen restore store disk --name new 2>words && fail "memory was started over other disks" \
        && return 1
    grep -q 'has disks' words || { cat words; return 1; }
    done=0
    while [ $done -lt "$wanted" ]; do
        restored_disks disk~$((done % 3)) || return 1
        done=$((done + 1))
        # Others, at another point of the guest's second.
        if [ $((done % 3)) -eq 0 ] && [ $done -lt "$wanted" ]; then
            usleep $((done * 37 % 100 * 10000))
            take 3 && no_trace || return 1
        fi
    done
    echo "# $done restored"
    quiet_disks disk
}

# The checkpointer is killed while it has disks suspended: these and the guest are live within a
# second, and the next one removes what the dead one left.
live_disks_kill() {
    have_disk_guest || return 1
    id=$(xl domid disk)
    take 1 || return 1
    kills=0
    within=0
    while [ $kills -lt "$(many 4 20)" ]; do
        # Slow storage: one disk stands suspended while the other one's requests end.
        if [ $((kills % 2)) -eq 1 ]; then storage slow 100 || return 1; fi
        $varve xen checkpoint disk store --disk-state $cuts --every 200ms --json >lines 2>words &
        pid=$!
        # From before the first suspension both guards live, and the cut is noted. Until then the
        # processor is the checkpointer's own.
        tries=1200
        until grep -qs disk-guard /proc/[0-9]*/cmdline && ls $cuts/*/cut-* >/dev/null 2>&1; do
            tries=$((tries - 1))
            [ $tries -gt 0 ] || { cat words; fail "there is no guard"; return 1; }
            usleep 100000
        done
        $cases death "$id" $pid >stood 2>&1 &
        watcher=$!
        $diskdeath $pid $((kills * 700 % 4000)) a b >said \
            || { cat said words; fail "disks stay suspended"; return 1; }
        wait $watcher || { cat stood words; return 1; }
        wait $pid 2>/dev/null
        storage linear || return 1
        for device in a b; do
            dmsetup info $device | grep -q 'State: *ACTIVE' || fail "$device is suspended" \
                || return 1
        done
        quiet_disks disk || return 1
        read -r still end <stood
        live=$(sed 's/.*live=//' said)
        echo "# $(sed 's/ live.*//' said) at the death; disks live after $live us;" \
            "the guest stood $still ms, its guard was done after $end ms"
        [ "$live" -le 1000000 ] && [ "$still" -le 1000 ] || fail "too long" || return 1
        grep -q 'suspended=0' said || within=$((within + 1))
        kills=$((kills + 1))
    done
    [ $within -ge $((kills / 2)) ] || fail "only $within deaths were in the suspension" || return 1
    take 2 && no_trace && quiet_disks disk && whole disk || return 1
    echo "# killed $kills times, $within with a disk suspended; nothing was left"
    $varve verify store
}

# stored: how many checkpoints there are.
stored() { $varve log store --json | wc -l; }

# refused PATTERN [WORD...]: a checkpoint fails with one sentence that has the pattern and with exit
# status 1; nothing is stored, nothing of a cut is left, and the guest runs without an error.
refused() { refusal "$@" && quiet_disks disk; }
refusal() {
    pattern=$1
    shift
    before=$(stored)
    $varve xen checkpoint disk store --disk-state $cuts "$@" >lines 2>words
    status=$?
    grep -v 'disks were resumed' words | sed 's/^/# /'
    [ $status -eq 1 ] || fail "exit status $status" || return 1
    [ "$(grep -c "$pattern" words)" -eq 1 ] && [ "$(wc -l <words)" -eq 1 ] \
        || { cat words; fail "not one sentence with '$pattern'"; return 1; }
    [ "$(stored)" -eq "$before" ] || fail "something was stored" || return 1
    no_trace
}

# fill_metadata PERCENT: makes volumes until more than that is in use of the pool's metadata.
fill_metadata() {
    tries=400
    until [ "$(fill | sed 's/.*metadata \([0-9]*\) .*/\1/')" -gt "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "the metadata do not fill: $(fill)" || return 1
        dmsetup message pool 0 "create_thin $(next_thin)" 2>/dev/null || sleep 0.2
    done
    echo "# $(fill)"
}

# complete: the cause is gone: the next checkpoint is whole.
complete() { take 1 && no_trace && quiet_disks disk && whole disk; }

# A pool that is nearly full or full, of data or of metadata: the checkpoint is refused, and the
# guest runs; after the pool was extended the next one is whole.
disk_full() {
    xl destroy disk 2>/dev/null
    # 96 MiB of data, 1 MiB of metadata.
    make_pool $((96 * 2048)) 2048 || return 1
    disk_config disk a b
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120 || return 1
    take 1 || return 1
    id=$(next_thin)
    dmsetup message pool 0 "create_thin $id" \
        && dmsetup create filler --table "0 $((512 * 2048)) thin /dev/mapper/pool $id" || return 1
    echo "# $(fill)"
    # Nearly full. The session has one cut when it begins the next.
    dd if=/dev/zero of=/dev/mapper/filler bs=1M count=56 oflag=direct 2>/dev/null || return 1
    echo "# $(fill)"
    refused 'of its data, above the limit of 85.0 %; extend it' || return 1
    # Full: this waits until there is space.
    dd if=/dev/zero of=/dev/mapper/filler bs=1M count=100 oflag=direct 2>/dev/null &
    waiting=$!
    tries=100
    until dmsetup status pool | grep -q out_of_data_space; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { dmsetup status pool; fail "the pool is not full"; return 1; }
        sleep 0.2
    done
    refused 'has no data space left; extend it' || return 1
    # The metadata stay small: a volume takes a block of them.
    grow_pool pool_data || return 1
    wait $waiting || fail "what waited for space failed" || return 1
    echo "# extended: $(fill)"
    complete || return 1
    fill_metadata 75 || return 1
    refused 'of its metadata, above the limit of 75.0 %; extend it' || return 1
    # Full: the pool gives no new block, and makes none that is shared the volume's own. The guest
    # is paused until there is space, for such a write of its would fail; shortly, for its kernel
    # complains about time that it has missed.
    fill_metadata 95 || return 1
    xl pause disk
    fill_metadata 99 || return 1
    dmsetup status pool | grep -q ' ro ' || fail "the pool goes on" || return 1
    refusal 'has no metadata space left; extend it' || return 1
    grow_pool pool_data pool_meta || return 1
    echo "# extended: $(fill)"
    xl unpause disk
    complete || return 1
    xl destroy disk
}
# fill: how full the pool is, in percent.
fill() {
    dmsetup status pool | awk '{ split($5, m, "/"); split($6, d, "/")
        printf "data %d %%, metadata %d %%\n", d[1] * 100 / d[2], m[1] * 100 / m[2] }'
}

# Disks come, go and change their size between checkpoints of one session and of several; one that
# cannot be suspended, reads that fail, and storage that is too slow refuse a checkpoint.
disk_changes() {
    xl destroy disk 2>/dev/null
    make_pool || return 1
    # A third disk needs more memory than the other cases leave to the guest.
    disk_config disk a b 'memory = 160' 'maxmem = 160'
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120 || return 1
    complete || return 1
    id=$(next_thin)
    dmsetup message pool 0 "create_thin $id" && activate c "$id" || return 1
    dd if=/dev/urandom of=/dev/mapper/c bs=1M count=3 oflag=direct 2>/dev/null
    during "xl block-attach disk phy:/dev/mapper/c,xvdc,w" || return 1
    has xvda xvdb xvdc || return 1
    $varve export store disk c.img --volume xvdc && cmp c.img /dev/mapper/c || return 1
    whole disk || return 1
    echo "# attached: $(names)"
    # Suspended by someone else: the guest has no request to it.
    dmsetup suspend c || return 1
    refused 'c is suspended by someone else; resume it first'
    status=$?
    dmsetup resume c
    [ $status -eq 0 ] && complete || return 1
    # Larger and smaller, while a session is open.
    during "resize c $((disk_sectors + 2048))" || return 1
    [ "$(size_of xvdc)" -eq $(((disk_sectors + 2048) * 512)) ] || fail "not larger" || return 1
    during "resize a $((disk_sectors + 8192))" && whole disk || return 1
    [ "$(size_of xvda)" -eq $(((disk_sectors + 8192) * 512)) ] || fail "not larger" || return 1
    during "resize a $disk_sectors; resize c 2048" && whole disk || return 1
    [ "$(size_of xvdc)" -eq $((2048 * 512)) ] || fail "not smaller" || return 1
    $varve export store disk c.img --volume xvdc --force && cmp c.img /dev/mapper/c || return 1
    echo "# xvda 4 MiB larger and as before, xvdc 1 MiB larger, then 1 MiB"
    during "xl block-detach disk xvdc" && has xvda xvdb && whole disk || return 1
    echo "# detached: $(names)"
    dmsetup remove --retry c && quiet_disks disk || return 1
    xl destroy disk
}
# during COMMAND: a session takes a checkpoint, the command runs, and it takes two more.
during() {
    $varve xen checkpoint disk store --disk-state $cuts --every 3s --count 4 --json >lines 2>words &
    session=$!
    wait_file lines 120 || { cat words; return 1; }
    eval "$1" || { kill $session; return 1; }
    wait $session || { cat words; fail "the session ended at: $1"; return 1; }
    no_trace && quiet_disks disk
}
# names, size_of DISK: of the newest checkpoint.
newest() { $varve log store -n 1 --json; }
names() {
    newest | sed 's/.*"volumes"//' | tr '{' '\n' | sed -n 's/.*"name":"\(xv[a-z]*\)".*/\1/p' \
        | tr '\n' ' '
}
size_of() { newest | tr '{' '\n' | sed -n "s/.*\"name\":\"$1\",\"bytes\":\([0-9]*\).*/\1/p"; }
has() { [ "$(names)" = "$* " ] || fail "the disks are $(names)"; }

# Reads of the cut that fail, and storage that is slower than the pause may be.
disk_errors() {
    have_disk_guest && complete || return 1
    # The first reads of a session are many. The snapshot gets a table that fails meanwhile; now and
    # then that is too late, and the checkpoint is a good one.
    tries=5
    while :; do
        break_reads &
        breaker=$!
        refused 'the cut of disk xvd[ab] cannot be read: .* look at the kernel' && break
        kill $breaker 2>/dev/null
        tries=$((tries - 1))
        [ $tries -gt 0 ] && [ "$(grep -c '"error"\|cannot' words)" -eq 0 ] && no_trace || return 1
    done
    complete || return 1
    asynchronous_guest && complete || return 1
    storage slow 4000 || return 1
    sleep 2
    # If what is under way has less than 2 s left, the cut is in time.
    tries=6
    while :; do
        refused 'longer than 2.0 seconds, and was given up; allow more, or use faster storage'
        status=$?
        tries=$((tries - 1))
        [ $status -ne 0 ] && [ $tries -gt 0 ] && [ ! -s words ] || break
    done
    storage linear && [ $status -eq 0 ] && complete || return 1
    xl destroy disk
}
# asynchronous_guest: a new guest, with a new store, whose only writes are 16 asynchronous ones at a
# time. Its suspension waits for none of them.
asynchronous_guest() {
    xl destroy disk 2>/dev/null
    rm -r store
    $varve init store >/dev/null || return 1
    make_pool || return 1
    disk_config disk a b \
        'extra = "console=hvc0 quiet mitigations=off diskkeeper.only=asynchronous"'
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120
}
# break_reads: waits for the snapshot of a disk, whose reads fail from then on.
break_reads() {
    while :; do
        for name in $(dmsetup ls | sed -n "s/^\(varve-cut-[0-9a-z]*-[01]\).*/\1/p"); do
            dmsetup load "$name" --table "0 $disk_sectors error" \
                && dmsetup suspend --noflush "$name"
            dmsetup resume "$name" && return 0
        done
        usleep 20000
    done
}

# How many blocks of the disks were stored because memory has the same, as its page cache does:
# memory and disks are imported into a repository each, too.
disk_known() {
    have_disk_guest || return 1
    count=$(many 5 20)
    take "$count" || return 1
    $varve init memories >/dev/null && $varve init disks >/dev/null || return 1
    for id in $(sed 's/.*"id":"\([0-9a-f]*\)".*/\1/' lines); do
        rm -f memory xvda.img xvdb.img
        $varve export store "$id" memory --format raw >/dev/null || return 1
        for disk in xvda xvdb; do
            $varve export store "$id" $disk.img --volume $disk >/dev/null || return 1
        done
        $varve import memories memory --format raw --lineage all >/dev/null \
            && $varve import disks --volume xvda=xvda.img --volume xvdb=xvdb.img --lineage all \
                >/dev/null || return 1
    done
    together=$(unique store)
    of_memory=$(unique memories)
    of_disks=$(unique disks)
    echo "# $count checkpoints: $of_memory pages of memory and $of_disks blocks of disks are" \
        "$together stored: $((of_memory + of_disks - together)) blocks were known from memory"
    [ $((of_memory + of_disks)) -gt "$together" ] || fail "no block of a disk was known"
}
# unique STORE: how many different pages it has.
unique() { $varve stats "$1" | sed -n 's/^unique *\([0-9]*\).*/\1/p'; }

# The downtime with disks and without, of a guest that writes to all of them as fast as it can.
disk_times() {
    xl destroy disk 2>/dev/null
    make_pool || return 1
    # The pool has room for eight of these, and for what two cuts of each keep.
    disk_sectors=$((12 * 2048))
    count=$(many 10 40)
    echo "# p50, p99, max in ms of the downtime, and of drain, cut and copy in it; $count each"
    for number in 1 2 8; do
        list=
        for name in $(echo c d e f g h i j | cut -c1-$((2 * number - 1))); do
            [ -e /dev/mapper/$name ] || {
                id=$(next_thin)
                dmsetup message pool 0 "create_thin $id" && activate $name "$id" || return 1
            }
            list="$list\"phy:/dev/mapper/$name,xvd$name,w\", "
        done
        # Each disk needs memory, too.
        disk_config disk a b "disk = [ $list ]" 'memory = 192' 'maxmem = 192' \
            'extra = "console=hvc0 quiet mitigations=off diskwriters"'
        start_disk_guest disk && sleep 5 || return 1
        $varve init store-$number >/dev/null
        for words in "" --no-disks; do
            $varve xen checkpoint disk store-$number --lineage "l$words" --disk-state $cuts \
                --every 300ms --count $((count + 1)) --json $words >all 2>words \
                || { cat words; return 1; }
            # The first one copies all of memory.
            sed 1d all >lines
            echo "# $number${words:+ $words}: downtime $(spread downtime), drain $(spread drain)," \
                "cut $(spread cut), copy $(spread copy);" \
                "$(middle_of dirtyPages) dirty pages"
        done
        if console disk | grep 'I/O error'; then fail "the guest has an error" || return 1; fi
        no_trace || return 1
        xl destroy disk
        rm -r store-$number
    done
}
# spread WHAT: p50, p99 and max of it in lines; copy: the downtime without drain and cut.
spread() {
    awk -v what="$1" '
        function of(key) { return match($0, "\"" key "Microseconds\":[0-9]+") \
            ? substr($0, RSTART + length(key) + 15, RLENGTH - length(key) - 15) : 0 }
        { print what == "copy" ? of("downtime") - of("drain") - of("cut") : of(what) }' lines \
        | sort -n | awk '{ v[NR] = $1 / 1000 }
            END { printf "%.1f/%.1f/%.1f", v[int((NR + 1) / 2)], v[int(NR * 0.99 + 0.999)], v[NR] }'
}

# With slow disks requests are under way in the suspension: each checkpoint says how many, as the
# ring's own indices do. With --settle none is left, and a bound that is too short is kept.
live_disks_under_way() {
    asynchronous_guest && storage slow 500 || return 1
    sleep 4
    take "$(many 3 10)"
    status=$?
    under_way && before=$most || status=1
    [ $status -eq 0 ] && take "$(many 2 10)" --settle 20s || status=1
    under_way && settled=$most || status=1
    [ $status -eq 0 ] && take 2 --settle 1ms || status=1
    under_way && short=$most || status=1
    storage linear && [ $status -eq 0 ] || return 1
    echo "# under way: $before at most; after a wait $settled, after one of 1 ms $short"
    [ "$before" -ge 8 ] || fail "too few requests were under way" || return 1
    [ "$settled" -eq 0 ] || fail "the disks did not settle" || return 1
    [ "$short" -ge 8 ] || fail "the disks settled in 1 ms" || return 1
    # Nothing of that is lost on anyone: the checkpoints are whole, and the guest goes on.
    whole disk && whole "disk~$((1 + $(many 2 10)))" && no_trace && quiet_disks disk || return 1
    xl destroy disk
}
# under_way: the largest number of requests of a disk in lines; each disk of each line has one.
under_way() {
    counts=$(grep -o '"requestsUnderWay":[a-z0-9]*' lines | sed 's/.*://')
    # The memory has none.
    [ "$(echo "$counts" | grep -c null)" -eq "$(wc -l <lines)" ] \
        || { cat lines; fail "a number is unknown"; return 1; }
    most=$(echo "$counts" | grep -v null | sort -n | tail -n 1)
}

# goes_back CHECKPOINT COUNT [WORD...]: a revert, after which the guest goes on at this count.
goes_back() {
    point=$1
    at=$2
    shift 2
    $varve xen revert disk store "$point" --disk-state $cuts --json "$@" >>lines 2>words \
        || { cat words; fail "no revert to $point"; return 1; }
    # Its earlier output belongs to a state that is gone.
    : >/var/log/xen/guest-disk.log
    wait_console disk 'writes=' 60 || fail "the guest says nothing after a revert" || return 1
    first=$(first_writes disk)
    [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] \
        || fail "after the revert to $point, at $at, it goes on at $first" || return 1
    # The guest's wall clock is set when it continues, its monotonic clock is the checkpoint's.
    read -r wall monotonic <<END
$(console disk | tr -d '\r' | sed -n 's/.*wall=\([0-9]*\) monotonic=\([0-9]*\).*/\1 \2/p' | tail -n 1)
END
    late=$(($(date +%s) - wall))
    # It was printed some seconds ago at most.
    [ $late -ge -1 ] && [ $late -le 10 ] || fail "the guest's clock is $late s late" || return 1
    generation=$(xenstore-read "/local/domain/$(xl domid disk)/data/varve/generation")
    echo "# $at: wall clock $late s behind dom0's, monotonic clock at $monotonic s"
    [ ${#generation} -eq 32 ] && [ "$generation" != "$last_generation" ] \
        || fail "the generation is '$generation'" || return 1
    last_generation=$generation
    # The first packet asks for the address.
    ping -c 3 -W 5 10.9.0.2 >pinged 2>&1 || { cat pinged; fail "no answer to pings"; return 1; }
    quiet_disks disk
}
# step NAME: the median and the maximum of a step of the reverts in lines, in us.
step() { middle_of "$1"; }
# volume_count: how many thin devices the pool has, or files the file system.
volume_count() {
    [ ! -e /files/a ] || { find /files -type f | wc -l; return; }
    dmsetup message pool 0 reserve_metadata_snap || return 1
    thin_dump --metadata-snap="$(dmsetup status pool | awk '{ print $7 }')" /dev/vdb \
        | grep -c '<device '
    dmsetup message pool 0 release_metadata_snap
}
# to POINT [WORD...]: back to one of the first checkpoints.
to() {
    point=$1
    shift
    goes_back "$(sed -n "$((point + 1))s/.*\"id\":\"\([0-9a-f]*\)\".*/\1/p" taken)" \
        "$(cat at.$point)" "$@"
}

# The guest goes back and forth among checkpoints of two branches, with requests under way too, by
# force, and as a new domain; what it knows of its disks is on them each time. In the end its file
# systems are clean, and its volumes have no companions.
disk_revert() {
    xl destroy disk 2>/dev/null
    if [ -n "$files" ]; then make_files; else make_pool; fi || return 1
    for volume in a b; do
        eval "$volume=$(if [ -n "$files" ]; then loop_of $volume; else device_path $volume; fi)"
    done
    # The interface's buffers need memory, too.
    disk_config disk "$a" "$b" 'vif = [ "mac=00:16:3e:00:00:01,script=vif" ]' \
        "vcpus = ${vcpus:-1}" 'memory = 128' 'maxmem = 128'
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120 || return 1
    ping -c 3 -W 5 10.9.0.2 >/dev/null || fail "no answer to the first pings" || return 1
    volumes=$(volume_count)
    take 3 || return 1
    cp lines taken
    for back in 0 1 2; do knows disk~$back >at.$((2 - back)) || return 1; done
    : >lines
    reverts=0
    while [ $reverts -lt "$(many 4 50)" ]; do
        # By now each is an ancestor of the newest one, which may be of another branch.
        to $((reverts * 7 % 3)) || return 1
        reverts=$((reverts + 1))
        [ $((reverts % 4)) -ne 0 ] || { mv lines kept; take 1 && mv kept lines; } || return 1
    done
    quiet_disks disk && no_trace || return 1
    echo "# $reverts reverts, microseconds (p50, max): standing still $(middle_of pauseMicroseconds)," \
        "$(middle_of pagesCompared) pages compared, $(middle_of pagesWritten) written," \
        "suspend $(step stop), back ends $(step devices), log $(step late), reset $(step prepare)," \
        "disks $(step disks), pages $(step pages), state $(step state), resume $(step resume);" \
        "devices again after $(step reconnect)"
    storage slow 300 || return 1
    sleep 3
    : >lines
    to 1
    status=$?
    storage linear && [ $status -eq 0 ] || return 1
    echo "# with slow disks: suspend $(step stop), back ends $(step devices)"
    # It cannot answer: by force.
    xl pause disk
    $varve xen revert disk store disk --disk-state $cuts >/dev/null 2>words \
        || { cat words; return 1; }
    xl list disk | tail -n 1 | grep -q -- '--p' || fail "it is not paused any more" || return 1
    : >/var/log/xen/guest-disk.log
    xl unpause disk
    wait_console disk 'writes=' 60 && quiet_disks disk || return 1
    # Another domain of the same UUID, and that one in place.
    was=$(xl domid disk)
    to 0 --replace && [ "$(xl domid disk)" -ne "$was" ] || return 1
    to 2 && take 1 && whole disk && no_trace || return 1
    [ "$(volume_count)" -eq "$volumes" ] \
        || fail "there are $(volume_count) volumes, not $volumes" || return 1
    xl shutdown -w disk >/dev/null 2>&1
    console disk | grep -q 'diskkeeper: ended errors=0' || fail "it did not end in order" \
        || return 1
    xl destroy disk
    for volume in "$a" "$b"; do
        /disks/bin/e2fsck -fn $volume >fsck.log 2>&1 && ! grep -q journal fsck.log \
            || { cat fsck.log; fail "the file system of $volume is not clean"; return 1; }
    done
    drop_pool
    without_devices
}

# The same reverts of a guest of this size that has no devices, to compare the times.
without_devices() {
    xl create -q /rig/pvh.cfg 'memory=128' 'maxmem=128' && settle pvh || return 1
    $varve init bare >/dev/null
    $varve xen checkpoint pvh bare --every 200ms --count 2 >/dev/null 2>words \
        || { cat words; return 1; }
    : >lines
    for i in $(seq "$(many 4 20)"); do
        $varve xen revert pvh bare "pvh~$((i % 2))" --json >>lines 2>words \
            || { cat words; return 1; }
        sleep 1
    done
    echo "# without devices: standing still $(middle_of pauseMicroseconds), suspend $(step stop)," \
        "log $(step late), pages $(step pages), state $(step state), resume $(step resume)"
    xl destroy pvh
}

# The same for a guest with two processors, and for reflinked files on loop devices.
disk_revert_two() { vcpus=2; disk_revert; }
disk_revert_files() { files=1; disk_revert; }

# still_runs PATTERN [WORD...]: a revert fails with a sentence that has the pattern and with exit
# status 1, and the guest goes on as it was.
still_runs() {
    pattern=$1
    shift
    before=$(console disk | tr -d '\r' | sed -n 's/.*writes=\([0-9]*\).*/\1/p' | tail -n 1)
    : >/var/log/xen/guest-disk.log
    $varve xen revert disk store disk~1 --disk-state $cuts "$@" >revert.log 2>&1
    status=$?
    sed 's/^/# /' revert.log
    [ $status -eq 1 ] || fail "exit status $status" || return 1
    grep -q "$pattern" revert.log || fail "not '$pattern'" || return 1
    wait_console disk 'writes=' 120 || fail "the guest says nothing" || return 1
    [ "$(first_writes disk)" -gt "$before" ] || fail "it did not go on" || return 1
    quiet_disks disk && no_trace
}
# is_back: the revert that has just succeeded.
is_back() {
    sed 's/^/# /' revert.log
    : >/var/log/xen/guest-disk.log
    wait_console disk 'writes=' 60 || fail "the guest says nothing" || return 1
    first=$(first_writes disk)
    [ "$first" -ge "$at" ] && [ "$first" -le $((at + 4000)) ] || fail "it goes on at $first" \
        || return 1
    quiet_disks disk && no_trace
}

# What becomes of a revert that cannot be, and of one of a guest that has crashed or was shut down.
disk_revert_outcomes() {
    xl destroy disk 2>/dev/null
    make_pool $((192 * 2048)) || return 1
    disk_config disk a b 'memory = 128' 'maxmem = 128'
    start_disk_guest disk && wait_console disk 'writes=[0-9][0-9][0-9]' 120 || return 1
    take 2 && at=$(knows disk~1) || return 1
    revert="$varve xen revert disk store disk~1 --disk-state $cuts"
    # A page of it stays in use for longer than a back end may take.
    id=$(xl domid disk)
    /payload/grants "$id" "$(xenstore-read "/local/domain/$id/device/vbd/51712/ring-ref")" 60 \
        >held &
    holder=$!
    wait_file held 20 && still_runs 'a back end of domain [0-9]* still uses' --in-place || return 1
    wait $holder || return 1
    echo "# a back end that lets go too late: as it was"
    # Its disks are others than the checkpoint's.
    resize a $((disk_sectors + 8192)) && still_runs 'has [0-9]* bytes now' || return 1
    resize a $disk_sectors || return 1
    id=$(next_thin)
    dmsetup message pool 0 "create_thin $id" && activate c "$id" || return 1
    xl block-attach disk phy:/dev/mapper/c,xvdc,w && sleep 2 && still_runs 'xvdc' || return 1
    xl block-detach disk xvdc && sleep 2 && dmsetup remove --retry c || return 1
    dmsetup message pool 0 "delete $id"
    echo "# disks of another size, and another one: refused"
    # A pool with no room for two states.
    id=$(next_thin)
    dmsetup message pool 0 "create_thin $id" \
        && dmsetup create filler --table "0 $((512 * 2048)) thin /dev/mapper/pool $id" || return 1
    dd if=/dev/zero of=/dev/mapper/filler bs=1M count=138 oflag=direct 2>/dev/null || return 1
    echo "# $(fill)"
    still_runs 'above the limit' || return 1
    dmsetup remove --retry filler && dmsetup message pool 0 "delete $id" || return 1
    xl sysrq disk c
    tries=100
    until xl list disk | tail -n 1 | grep -q -- '---[-s]c-'; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { xl list; fail "it has not crashed"; return 1; }
        usleep 200000
    done
    $revert >revert.log 2>&1 && is_back || { cat revert.log; return 1; }
    echo "# crashed: reverted"
    xl shutdown -w disk >/dev/null 2>&1
    $revert >revert.log 2>&1 && is_back || { cat revert.log; return 1; }
    echo "# shut down: reverted"
    take 1 && whole disk && no_trace || return 1
    xl destroy disk
}

# The process is killed while it reverts, at any moment: the domain goes on as it was, or the guard
# reverts it.
disk_revert_kill() {
    have_disk_guest && take 2 || return 1
    kills=0
    : >stood
    while [ $kills -lt "$(many 6 60)" ]; do
        id=$(xl domid disk)
        back=/local/domain/0/backend/vbd/$id/51712/state
        $varve xen revert disk store disk~1 --disk-state $cuts >revert.log 2>&1 &
        watch_death $!
        case $((kills % 3)) in
            # It is asked to suspend itself.
            0) until [ "$(xenstore-read /local/domain/$id/control/shutdown)" = suspend ] \
                || ! kill -0 $pid 2>/dev/null; do :; done ;;
            # Its back ends are closed; and some time later.
            1 | 2) until [ "$(xenstore-read $back)" = 6 ] || ! kill -0 $pid 2>/dev/null; do :; done
                [ $((kills % 3)) -eq 1 ] || usleep $((kills * 7919 % 300 * 1000)) ;;
        esac
        kill -9 $pid
        runs_again || return 1
        kills=$((kills + 1))
    done
    tell_stood && whole disk && quiet_disks disk
}

# The same at each step of a revert: before and after the calls that change something.
disk_revert_death() {
    have_disk_guest && take 2 || return 1
    : >stood
    for name in pause soft-reset table suspend resume set-context unpause; do
        printf '%s 1 before\n%s 1 after\n' $name $name
    done >moments
    for name in grants map memory channel parameter; do echo "$name 1 after"; done >>moments
    for name in table suspend resume; do echo "$name 2 after"; done >>moments
    round=0
    while [ $round -lt "$(many 1 3)" ]; do
        while read -r moment <&3; do
            id=$(xl domid disk)
            REVERT_DEATH=$moment LD_PRELOAD=/disks/bin/revertdeath.so \
                $varve xen revert disk store disk~1 --disk-state $cuts </dev/null >revert.log 2>&1 &
            watch_death $!
            runs_again || { echo "at: $moment"; return 1; }
            [ $died -eq 137 ] || fail "no death at '$moment', but status $died" || return 1
            echo "# $moment: it stood still for $(tail -n 1 stood) ms; $fate"
        done 3<moments
        round=$((round + 1))
    done
    tell_stood && whole disk && quiet_disks disk
}

# watch_death PID: watches what becomes of the domain id when this process has died.
watch_death() {
    pid=$1
    $cases death "$id" "$pid" >took &
    watcher=$!
}
# runs_again: waits for that death, and until the domain runs; notes in the file stood for how many
# milliseconds it did not. All is as it should be then.
runs_again() {
    wait "$pid" 2>/dev/null
    died=$?
    wait $watcher || { cat took revert.log; return 1; }
    cut -d' ' -f1 took >>stood
    : >/var/log/xen/guest-disk.log
    wait_console disk 'writes=' 60 && quiet_disks disk || { cat revert.log; return 1; }
    for device in a b; do
        dmsetup info $device | grep -q 'State: *ACTIVE' || fail "$device is suspended" || return 1
    done
    # The guard's own revert holds the repository until it has ended.
    take 1 --wait 60 && no_trace || return 1
    fate=$(grep -h 'the checkpointer of domain' words revert.log | tail -n 1)
}

# tell_stood: how long it stood still after the deaths.
tell_stood() {
    sort -n stood | awk '{ v[NR] = $1 } END { print "# killed " NR " times; then it stood still for",
        v[int((NR + 1) / 2)] " ms (p50), " v[NR] " ms (max)" }'
}
