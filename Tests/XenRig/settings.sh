# Settings of the rig, for its other scripts. Sourced by bash.
rig=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${XENRIG_XEN:=4.17}"          # 4.17 of Debian 12, or 4.20 of Debian 13
# One processor, emulated by one thread. With two processors, or a thread for each, the emulator
# loses a guest in log-dirty mode within 300 to 4,000 reads of its log; with one it lost none.
: "${XENRIG_CPUS:=1}"            # processors of the emulated machine
: "${XENRIG_ACCEL:=tcg,thread=single}"
: "${XENRIG_MEM:=1280}"          # MiB of the emulated machine
: "${XENRIG_DOM0_MEM:=800}"      # MiB of dom0: 180 for itself, the rest for files and copies
# A processor with SVM and nested paging, without what QEMU 7.2 does not emulate, and without what
# it emulates wrongly for Xen: -smap (iret in a PV kernel faults and dom0 dies at once), -monitor
# (mwait with hints faults in Xen's idle loop), -rdtscp (PVH guests hang).
: "${XENRIG_CPU:=EPYC,-smap,-monitor,-rdtscp,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec}"
: "${XENRIG_TIMEOUT:=900}"       # seconds until the machine is stopped
: "${XENRIG_SILENCE:=60}"        # seconds without a word from dom0 until it is stopped
# Everything that is downloaded or built; the names change with the rig's own files.
: "${VARVE_XEN_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/varve-xen}"
case $XENRIG_XEN in
    4.17) suite=bookworm ;;
    4.20) suite=trixie ;;
    *) echo "rig: XENRIG_XEN=$XENRIG_XEN is not known; it is 4.17 or 4.20" >&2; exit 125 ;;
esac
key=$(cat "$rig"/setup.sh "$rig"/settings.sh "$rig"/own-apt.sh "$rig"/*.py "$rig"/dom0/* \
    "$rig"/domu/* "$rig"/copy-libraries.sh | sha256sum | cut -c1-12)
packages=$VARVE_XEN_CACHE/packages-$XENRIG_XEN-3
images=$VARVE_XEN_CACHE/images-$XENRIG_XEN-$key
# The version of another Debian brings all of its libraries, the C library too.
sysroot=
[ "$suite" = "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" ] || sysroot=$packages
