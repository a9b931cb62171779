# What scripts in dom0 share. Use: . /rig/rig.sh

now() { cut -d' ' -f1 /proc/uptime; }

# console NAME: what the guest has printed.
console() { cat "/var/log/xen/guest-$1.log" 2>/dev/null; }

# wait_console NAME PATTERN SECONDS
wait_console() {
    tries=$(($3 * 5))
    while [ "$tries" -gt 0 ]; do
        console "$1" | grep -q "$2" && return 0
        sleep 0.2
        tries=$((tries - 1))
    done
    return 1
}

# start_guest KIND [SETTING...]: makes the guest of /rig/KIND.cfg and waits until it dirties memory.
start_guest() {
    kind=$1
    shift
    : >"/var/log/xen/guest-$kind.log"
    xl create -q "/rig/$kind.cfg" "$@" || return 1
    wait_console "$kind" "dirtier: ready" 180 || { console "$kind"; return 1; }
}

# writes NAME: the newest count of writes that the guest has printed; 0 if none.
writes() {
    count=$(console "$1" | tr -d '\r' | sed -n 's/.*writes=\([0-9]*\).*/\1/p' | tail -n 1)
    echo "${count:-0}"
}

# first_writes NAME: the first count that it has printed.
first_writes() { console "$1" | tr -d '\r' | sed -n 's/.*writes=\([0-9]*\).*/\1/p' | head -n 1; }

# errors NAME: 0 if the guest's own check has never failed.
errors() { console "$1" | tr -d '\r' | grep -c 'errors=[1-9]'; }
