# What scripts in dom0 share about disks: a thin pool on /dev/vda (data) and /dev/vdb (metadata),
# the volumes a and b with ext4, their snapshots, and the guest on them. Use:
#   . /rig/rig.sh; . /disks/pool.sh
#
# pool_data is the linear device below the pool: its table can be replaced by one that is slow or
# fails (below).
export PATH="/disks/bin:$PATH" LD_LIBRARY_PATH=/usr/lib
# There is no udev: the tools make the nodes in /dev/mapper themselves.
export DM_DISABLE_UDEV=1
disk_sectors=$((64 * 2048))
# Behind the file system diskkeeper has 8 MiB (diskkeeper.c, RAW_LENGTH).
disk_file_system=$((56 * 1024))

[ -e /sys/module/dm_mod ] || for module in /disks/modules/*.ko; do insmod "$module"; done

sectors() { cat "/sys/block/$1/size"; }

# make_pool [DATA METADATA]: an empty pool, with 64 KiB blocks, of so many sectors or of all, and
# the volumes a and b in it, with file systems.
make_pool() {
    drop_pool && drop_lvm_pool || return 1
    dd if=/dev/zero of=/dev/vdb bs=4096 count=1 2>/dev/null
    dmsetup create pool_data --table "0 ${1:-$(sectors vda)} linear /dev/vda 0" \
        && dmsetup create pool_meta --table "0 ${2:-$(sectors vdb)} linear /dev/vdb 0" \
        && dmsetup create pool --table "$(pool_table)" || return 1
    : >/run/thin
    for volume in a b; do
        id=$(next_thin)
        dmsetup message pool 0 "create_thin $id" && activate $volume "$id" || return 1
        # By its path: busybox would run its own.
        /disks/bin/mke2fs -q -F -t ext4 /dev/mapper/$volume ${disk_file_system}k || return 1
    done
}

# make_files: instead of a pool, the volumes a and b are files of XFS on loop devices.
make_files() {
    drop_pool && drop_lvm_pool || return 1
    dmsetup create pool_data --table "0 $(sectors vda) linear /dev/vda 0" \
        && /disks/bin/mkfs.xfs -q -f -m reflink=1 /dev/mapper/pool_data && mkdir -p /files \
        && mount -t xfs /dev/mapper/pool_data /files || return 1
    for volume in a b; do
        truncate -s $((disk_sectors * 512)) /files/$volume \
            && /disks/bin/mke2fs -q -F -t ext4 /files/$volume ${disk_file_system}k \
            && losetup "$(loop_of $volume)" /files/$volume || return 1
    done
}
loop_of() { echo "/dev/loop$(echo "$1" | tr ab 01)"; }
drop_files() {
    [ -e /files/a ] || return 0
    for volume in a b; do losetup -d "$(loop_of $volume)" 2>/dev/null; done
    umount /files
}

pool_table() {
    size=$(table_sectors pool_data)
    echo "0 $size thin-pool /dev/mapper/pool_meta /dev/mapper/pool_data 128 0"
}
# table_sectors DEVICE: its size by its table.
table_sectors() { dmsetup table "$1" | cut -d' ' -f2; }

# grow_pool DEVICE...: these of pool_data and pool_meta have all of their disks, as after lvextend.
grow_pool() {
    for device in "$@"; do
        [ "$device" = pool_data ] && under=vda || under=vdb
        dmsetup load "$device" --table "0 $(sectors $under) linear /dev/$under 0" || return 1
    done
    # Without flushing: what waits for space would never end.
    dmsetup suspend --noflush pool || return 1
    status=0
    for device in "$@"; do
        dmsetup suspend --noflush "$device" || status=1
        dmsetup resume "$device" || status=1
    done
    dmsetup load pool --table "$(pool_table)" || status=1
    dmsetup resume pool && return $status
}

# resize VOLUME SECTORS: a volume of another size.
resize() {
    dmsetup load "$1" --table "0 $2 thin /dev/mapper/pool $(thin_of "$1")" && dmsetup suspend "$1"
    status=$?
    dmsetup resume "$1" && return $status
}

# lvm COMMAND WORD...: LVM's own, without what needs udev and daemons.
lvm() {
    command=$1
    shift
    /disks/bin/lvm "$command" --config 'devices { filter=["a|^/dev/vd|", "r|.*|"] use_devicesfile=0 }
        activation { udev_sync=0 udev_rules=0 monitoring=0 }
        global { use_lvmpolld=0 thin_check_executable="/disks/bin/thin_check" }
        backup { backup=0 archive=0 }' "$@"
}

# make_lvm_pool: the same by LVM: the volume group rig with the thin pool rig/pool and the volumes
# rig/a and rig/b, which are /dev/mapper/rig-a and rig-b. It takes /dev/vda alone.
make_lvm_pool() {
    drop_pool && drop_lvm_pool || return 1
    lvm pvcreate -q -ff -y /dev/vda && lvm vgcreate rig /dev/vda \
        && lvm lvcreate --type thin-pool -l 90%FREE --poolmetadatasize 16m --chunksize 64k \
            --poolmetadataspare n -n pool rig || return 1
    for volume in a b; do
        lvm lvcreate -V ${disk_sectors}s -T rig/pool -n $volume || return 1
        /disks/bin/mke2fs -q -F -t ext4 /dev/mapper/rig-$volume ${disk_file_system}k || return 1
    done
}
drop_lvm_pool() {
    [ -e /dev/rig ] || return 0
    lvm vgremove -y -ff rig && lvm pvremove -y -ff /dev/vda
    # The links, which are udev's elsewhere.
    rm -rf /dev/rig
}

# changed OLD NEW: the numbers of the 64 KiB blocks that two thin devices do not share, by
# thin_delta on a snapshot of the pool's metadata.
changed() {
    dmsetup message pool 0 reserve_metadata_snap || return 1
    thin_delta --metadata-snap="$(dmsetup status pool | awk '{ print $7 }')" --snap1 "$1" \
        --snap2 "$2" /dev/vdb >delta.xml
    status=$?
    dmsetup message pool 0 release_metadata_snap
    sed -n '/<same/d; s/.*begin="\([0-9]*\)".*length="\([0-9]*\)".*/\1 \2/p' delta.xml \
        | awk '{ for (i = 0; i < $2; i++) print $1 + i }' | sort -n
    return $status
}

# drop_pool: everything of it is gone, also mounts and files on its disk.
drop_pool() {
    drop_copies
    drop_files || return 1
    for device in a b pool pool_data pool_meta; do
        [ ! -e "/dev/mapper/$device" ] || dmsetup remove --retry "$device" || return 1
    done
}

# drop_copies: activated snapshots are gone; the pool, a and b stay.
drop_copies() {
    for point in $(awk '$2 ~ "^/run/mnt-" { print $2 }' /proc/mounts); do umount "$point"; done
    for device in /dev/mapper/*; do
        case ${device##*/} in control | a | b | pool | pool_data | pool_meta | '*') continue ;; esac
        dmsetup remove --retry "${device##*/}"
    done
}

# next_thin: the number of a new thin device. /run/thin has all of them.
next_thin() { echo $(($(wc -l </run/thin) + 1)) | tee -a /run/thin; }

# thin_of NAME: the number of the thin device that is shown by a device.
thin_of() { dmsetup table "$1" | sed 's/.* //'; }

# activate NAME NUMBER: a thin device as /dev/mapper/NAME.
activate() { dmsetup create "$1" --table "0 $disk_sectors thin /dev/mapper/pool $2"; }

# cut_disks NAME: snapshots of a and b of one instant: both devices are suspended meanwhile. Their
# numbers are in the files NAME.a and NAME.b.
cut_disks() {
    dmsetup suspend a && dmsetup suspend b
    status=$?
    for volume in a b; do
        id=$(next_thin)
        [ $status -eq 0 ] && dmsetup message pool 0 "create_snap $id $(thin_of $volume)" \
            && echo "$id" >"$1.$volume" || status=1
    done
    # In any case.
    dmsetup resume a || status=1
    dmsetup resume b || status=1
    return $status
}

# copy_disk NAME VOLUME NUMBER: a writable snapshot of a snapshot, so that this stays as it is.
copy_disk() {
    id=$(next_thin)
    dmsetup message pool 0 "create_snap $id $3" && activate "$1_$2" "$id"
}

# copy_disks CUT NAME: writable copies of both disks of a cut: /dev/mapper/NAME_a and NAME_b.
copy_disks() {
    for volume in a b; do copy_disk "$2" $volume "$(cat "$1.$volume")" || return 1; done
}

# drop_cuts: activated snapshots are gone, and all snapshots themselves.
drop_cuts() {
    drop_copies
    for id in $(cat /run/thin); do
        [ "$id" = "$(thin_of a)" ] || [ "$id" = "$(thin_of b)" ] \
            || dmsetup message pool 0 "delete $id" 2>/dev/null
    done
}

# storage linear|slow MILLISECONDS|error|flaky UP DOWN: how the pool's data disk behaves from now on;
# flaky: in turn right for UP seconds and failing for DOWN.
storage() {
    size=$(table_sectors pool_data)
    case $1 in
        linear) table="0 $size linear /dev/vda 0" ;;
        slow) table="0 $size delay /dev/vda 0 $2" ;;
        error) table="0 $size error" ;;
        flaky) table="0 $size flakey /dev/vda 0 $2 $3" ;;
    esac
    # Without flushing: a device that fails could not.
    dmsetup load pool_data --table "$table" && dmsetup suspend --noflush --nolockfs pool_data
    status=$?
    dmsetup resume pool_data && return $status
}

# disk_config NAME A B [LINE...]: writes /run/NAME.cfg of a guest with these devices as its disks,
# which are paths or names in /dev/mapper.
disk_config() {
    name=$1
    disks="\"phy:$(device_path "$2"),xvda,w\", \"phy:$(device_path "$3"),xvdb,w\""
    shift 3
    cat >"/run/$name.cfg" <<END
name = "$name"
type = "pvh"
kernel = "/rig/vmlinux"
ramdisk = "/disks/domu.cpio"
extra = "console=hvc0 quiet mitigations=off sysrq_always_enabled=1"
memory = 96
maxmem = 96
vcpus = 1
tsc_mode = "native"
on_crash = "preserve"
on_poweroff = "preserve"
on_reboot = "preserve"
disk = [ $disks ]
END
    for line in "$@"; do echo "$line"; done >>"/run/$name.cfg"
}

device_path() { case $1 in /*) echo "$1" ;; *) echo "/dev/mapper/$1" ;; esac; }

# start_disk_guest NAME: makes the guest of /run/NAME.cfg and waits until it works on its disks.
start_disk_guest() {
    : >"/var/log/xen/guest-$1.log"
    xl create -q "/run/$1.cfg" || return 1
    wait_console "$1" 'diskkeeper: ready' 180 || { console "$1"; return 1; }
}

# save_and_cut NAME FILE CUT: stock xl saves the guest, which runs on, into FILE, with a cut of its
# disks in the suspension. xl writes memory after it has suspended the guest, and stands still while
# nobody reads; it resumes the guest after the last page.
save_and_cut() {
    domain=$1
    xl save -c "$domain" /dev/stdout 2>save.log | {
        dd of="$2" bs=4096 count=512 iflag=fullblock 2>/dev/null
        xl list "$domain" | tail -n 1 | tee state
        cut_disks "$3"
        echo $? >cut.status
        cat >>"$2"
    }
    # The flag s: in the suspension.
    awk '$5 !~ /s/ { exit 1 }' state || { echo "$domain was not suspended"; return 1; }
    [ "$(cat cut.status)" -eq 0 ]
}

# file_systems NAME: the ext4 of NAME_a and NAME_b: the journal is replayed by a mount, and e2fsck
# finds nothing afterwards. The mounts are left: /run/mnt-a, /run/mnt-b.
file_systems() {
    for volume in a b; do
        device=/dev/mapper/$1_$volume
        point=/run/mnt-$volume
        mkdir -p $point
        mount -t ext4 -o ro "$device" $point && umount $point || return 1
        /disks/bin/e2fsck -fn "$device" >fsck.log 2>&1 || { cat fsck.log; return 1; }
        mount -t ext4 -o ro "$device" $point || return 1
    done
}

unmount() { umount /run/mnt-a; umount /run/mnt-b; }
