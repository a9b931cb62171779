# Settings of the rig's disks. Sourced by bash after the rig's own settings.sh.
: "${XENRIG_DATA:=512}"          # MiB of the thin pool's data disk (sparse)
: "${XENRIG_METADATA:=32}"       # MiB of its metadata disk
# Beside the other images: their names do not change with what only the disks need.
disk_key=$(cat "$rig"/disks/*.sh "$rig"/disks/*.[ch] "$rig"/disks/block "$rig"/disks/vif "$rig"/disks/init \
    "$rig"/disks/poweroff <<<"$key" | sha256sum | cut -c1-12)
disk_packages=$VARVE_XEN_CACHE/disk-packages-$XENRIG_XEN
disk_images=$VARVE_XEN_CACHE/disk-images-$XENRIG_XEN-$disk_key
