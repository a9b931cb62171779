# What scripts in dom0 share. Use: . /rig/rig.sh

now() { cut -d' ' -f1 /proc/uptime; }

# console NAME: what the guest has printed.
console() { cat "/var/log/xen/guest-$1.log" 2>/dev/null; }

# wait_console NAME PATTERN SECONDS
wait_console() {
    tries=$(($3 * 5))
    while [ "$tries" -gt 0 ]; do
        grep -qs "$2" "/var/log/xen/guest-$1.log" && return 0
        sleep 0.2
        tries=$((tries - 1))
    done
    return 1
}

# wait_file FILE SECONDS: until it holds something.
wait_file() {
    tries=$(($2 * 20))
    while [ ! -s "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        usleep 50000
    done
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
