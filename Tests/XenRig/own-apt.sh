# An apt state of the rig's own for another suite of Debian than the host's. Sourced by bash.

# own_apt SUITE DIRECTORY: fills the array `apt` with the options of a state in DIRECTORY, updated.
# The mirrors are those that this machine's own apt takes its release from.
own_apt() {
    local own
    own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mkdir -p "$2/lists/partial" "$2/cache/archives/partial"
    apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' \
        'Origin: Debian' \
        | sed -n "s|^\(deb [^ ]* \)$own main\$|\1$1 main|p" | sort -u >"$2/sources.list"
    if [ ! -s "$2/sources.list" ]; then
        echo "varve: this machine's apt knows no mirror of Debian '$own' main;" \
            "packages of $1 cannot be found" >&2
        return 1
    fi
    apt=(-o "Dir::Etc::sourcelist=$2/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$2/lists" -o "Dir::Cache=$2/cache" -o APT::Sandbox::User=root
        -o "APT::Default-Release=$1")
    apt-get "${apt[@]}" -qq update
}
