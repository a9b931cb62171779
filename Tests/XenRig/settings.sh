# Settings of the rig, for its other scripts. Sourced by bash.
rig=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${XENRIG_XEN:=4.17}"          # the version in Debian's package names
: "${XENRIG_CPUS:=2}"            # processors of the emulated machine
: "${XENRIG_MEM:=1280}"          # MiB of the emulated machine
: "${XENRIG_DOM0_MEM:=800}"      # MiB of dom0: 180 for itself, the rest for files and copies
# A processor with SVM and nested paging, without what QEMU 7.2 does not emulate, and without what
# it emulates wrongly for Xen: -smap (iret in a PV kernel faults and dom0 dies at once), -monitor
# (mwait with hints faults in Xen's idle loop), -rdtscp (PVH guests hang).
: "${XENRIG_CPU:=EPYC,-smap,-monitor,-rdtscp,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec}"
: "${XENRIG_ACCEL:=tcg,thread=multi}"
: "${XENRIG_TIMEOUT:=600}"       # seconds until the machine is stopped
# Everything that is downloaded or built; its name changes with the rig's own files.
: "${VARVE_XEN_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/varve-xen}"
key=$(cat "$rig"/setup.sh "$rig"/settings.sh "$rig"/*.py "$rig"/dom0/* "$rig"/domu/* \
    "$rig"/copy-libraries.sh | sha256sum | cut -c1-12)
packages=$VARVE_XEN_CACHE/packages-$XENRIG_XEN
images=$VARVE_XEN_CACHE/images-$key
