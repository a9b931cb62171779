# In dom0: runs scripts in one boot, as they come. Each is /share/next, renamed to that when it is
# whole; its output comes to /share/output, its status to /share/status. See send.sh.
. /rig/rig.sh
[ ! -e /disks/pool.sh ] || . /disks/pool.sh
cd /run || exit 1
rm -f /share/stop
echo "dom0 waits for scripts, $(now)"
while [ ! -e /share/stop ]; do
    if [ -e /share/next ]; then
        mv /share/next /run/next
        # In this shell's copy: what a script sets is forgotten, files in /run stay.
        (. /run/next) >/share/output 2>&1
        echo $? >/share/status
    fi
    usleep 200000
done
