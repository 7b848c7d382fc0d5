#!/usr/bin/env bash
# The demo and the unit tests on fresh machines: root directories that debootstrap makes, with
# nothing in them but Python, its venv module and make. In each suite `make demo` runs on the default
# Python, and the unit tests on every Python that the suite has.
#
#   tests/matrix/run.sh                  bookworm, trixie and sid, and bare
#   tests/matrix/run.sh sid              one of them
#   tests/matrix/run.sh bare             a release that brings its Python, where there is none, on
#                                        bookworm; bare-trixie: on another one (bare.sh)
#
# Needs root, debootstrap, and up to 3 GB of disk for one suite at a time. The mirror, the proxies
# and the package index are those of this machine: apt's and pip's configuration is read at run time.
# What is missing is skipped by name. All mounts are in a namespace of their own, and so are all
# processes: both end with this script.
#
#   MIRROR=URL    another mirror of Debian
#   SCRATCH=DIR   where the root directories are made; /var/tmp by default
#   TESTS=PATHS   other tests than those in tests/unit, which need no Salt
#   KEEP=1        keeps the logs of what passed as well
set -euo pipefail

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
ROOM_KB=4000000
MAKE_SECONDS=1200
DEMO_SECONDS=2400
TEST_SECONDS=1800
USER_NAME=tester
PIP_FILES=(/etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf")

say() { printf 'matrix: %s\n' "$*"; }

# --- the machine that runs this -------------------------------------------------------------------

mirror() { # the one that apt uses; the public one where this is no Debian
    local known=''
    known=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
        2>/dev/null | head -n 1) || true
    [[ $known == http* ]] || known=http://deb.debian.org/debian
    printf '%s' "${MIRROR:-$known}"
}

pip_places() { # local directories and files that this configuration refers to
    {
        cat "${PIP_FILES[@]}" 2>/dev/null || true
        machine_variables | tr '\0' '\n'
    } | grep -oE '(file://)?/[^[:space:],=]+' | while read -r place; do
        case $place in
        file://*) place=$(dirname "${place#file://}") ;; # its pages link to files beside it
        //*) continue ;;                                 # of a URL
        esac
        [[ ! -e $place ]] || printf '%s\n' "$place"
    done | sort -u
}

machine_variables() { # those that configure pip, uv and certificates, each ended by NUL
    env -0 | grep -zE '^(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE=|[a-zA-Z]*_(proxy|PROXY)=)' || true
}

debian_of() { # SUITE
    local of=${1#bare}
    of=${of#-}
    printf '%s' "${of:-bookworm}"
}

unusable() { # why nothing can be run here; nothing where all is well
    [[ $(id -u) == 0 ]] || { echo 'root is needed'; return; }
    command -v debootstrap >/dev/null || { echo 'debootstrap is not installed'; return; }
    unshare --mount --pid --fork --kill-child true 2>/dev/null ||
        echo 'namespaces are not allowed here'
}

# --- inside the namespace: $ROOT is the root directory of one suite -------------------------------

in_root() { # SECONDS COMMAND...: as a plain user, in the checkout
    local seconds=$1 file variables=()
    shift
    while IFS= read -r -d '' file; do variables+=("$file"); done < <(machine_variables)
    timeout --kill-after=10 "$seconds" chroot "$ROOT" setpriv --reuid "$USER_NAME" \
        --regid "$USER_NAME" --clear-groups env -i "${variables[@]}" "HOME=/home/$USER_NAME" \
        "USER=$USER_NAME" LC_ALL=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin NO_COLOR=1 \
        sh -c 'cd "$HOME/checkout" && exec "$@"' sh "$@"
}

configure_apt() { # as on this machine
    local file
    for file in /etc/resolv.conf /etc/hosts; do
        cp --dereference "$file" "$ROOT$file"
    done
    # Proxies, and whether the dates of a mirror are checked; what it has no directory for is left.
    apt-config dump Acquire >"$ROOT/etc/apt/apt.conf.d/00machine"
    printf 'deb %s %s main\n' "$(mirror)" "$DEBIAN" >"$ROOT/etc/apt/sources.list"
    chroot "$ROOT" apt-get update -qq
}

make_root() {
    timeout "$MAKE_SECONDS" debootstrap --variant=minbase \
        --include=ca-certificates,make,python3,python3-venv "$SUITE" "$ROOT" "$(mirror)"
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs -o mode=1777,size=256m tmpfs "$ROOT/dev/shm"
    local place file
    configure_apt
    chroot "$ROOT" apt-cache pkgnames python3. | grep -E '^python3\.[0-9]+-(venv|nogil)$' |
        sort -V >"$ROOT/pythons"
    while read -r file; do
        DEBIAN_FRONTEND=noninteractive chroot "$ROOT" apt-get install -qq -y \
            --no-install-recommends "$file" </dev/null || echo "cannot install $file"
    done <"$ROOT/pythons"
    chroot "$ROOT" apt-get clean
    chroot "$ROOT" useradd --create-home "$USER_NAME"
    pip_places | while read -r place; do
        if [[ -d $place ]]; then
            mkdir -p "$ROOT$place"
        else
            mkdir -p "$(dirname "$ROOT$place")"
            [[ -e $ROOT$place ]] || touch "$ROOT$place" # it may be inside of one before it
        fi
        mount --bind "$place" "$ROOT$place"
        mount -o remount,bind,ro "$ROOT$place"
    done
    mkdir -p "$ROOT/home/$USER_NAME/.config/pip" "$ROOT/home/$USER_NAME/checkout"
    cp "${PIP_FILES[0]}" "$ROOT/etc/pip.conf" 2>/dev/null || true
    for file in "${PIP_FILES[@]:1}"; do
        cat "$file" 2>/dev/null || true
    done >"$ROOT/home/$USER_NAME/.config/pip/pip.conf"
    git -C "$CHECKOUT" ls-files -z --cached --others --exclude-standard |
        (cd "$CHECKOUT" && while IFS= read -r -d '' file; do
            [[ ! -e $file && ! -L $file ]] || printf '%s\0' "$file"
        done) | tar -C "$CHECKOUT" --null -T - -cf - |
        tar -C "$ROOT/home/$USER_NAME/checkout" -xf -
    chroot "$ROOT" chown -R "$USER_NAME:$USER_NAME" "/home/$USER_NAME"
}

report() { # WHAT LOG COMMAND...: run it, and print one line
    local what=$1 log=$2 begun=$SECONDS code=0
    shift 2
    "$@" >"$log" 2>&1 </dev/null || code=$?
    local last
    last=$(grep -vE '^[[:space:]]*$' "$log" | tail -n 1 | sed 's/\x1b\[[0-9;]*m//g') || true
    if ((code == 0)); then
        say "$SUITE: $what: passed in $((SECONDS - begun)) s: $last"
    else
        say "$SUITE: $what: FAILED with exit code $code after $((SECONDS - begun)) s, see $log: $last"
        FAILED=$((FAILED + 1))
    fi
    return "$code"
}

test_python() { # PYTHON: the unit tests, in a virtualenv of it
    local venv=/home/$USER_NAME/venv
    rm -rf "$ROOT$venv"
    # shellcheck disable=SC2016
    in_root "$TEST_SECONDS" sh -euc '
        "$1" -m venv "$2"
        "$2/bin/python" -m pip install -q --disable-pip-version-check "pytest>=8" "hypothesis>=6.100"
        "$2/bin/python" -m pip install -q --disable-pip-version-check .
        "$2/bin/python" -m pytest -q -m "not slow" -p no:cacheprovider $3
        ' sh "$1" "$venv" "${TESTS:-tests/unit}"
}

demo() { # on the fresh machine; where the Makefile asks for a C compiler, once more with one
    local log=$LOGS/$SUITE-demo.log
    if ! report 'make demo' "$log" in_root "$DEMO_SECONDS" make demo; then
        grep -q 'there is no C compiler' "$log" || return 0
        FAILED=$((FAILED - 1))
        report 'a C compiler' "$LOGS/$SUITE-compiler.log" chroot "$ROOT" env \
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
            gcc libc6-dev python3-dev || return 0
        report 'make demo with a C compiler' "$log" in_root "$DEMO_SECONDS" make demo || true
    fi
}

suite() {
    local python name
    report 'root directory' "$LOGS/$SUITE-root.log" make_root || return 0
    demo
    for python in "$ROOT"/usr/bin/python3.*; do
        name=$(basename "$python")
        [[ $name =~ ^python3\.[0-9]+t?$ ]] || continue
        if in_root 60 "$name" -c 'import venv, ensurepip' 2>/dev/null; then
            report "unit tests on $name" "$LOGS/$SUITE-$name.log" test_python "$name" || true
        else
            say "$SUITE: unit tests on $name: skipped, it has no venv or no ensurepip"
        fi
    done
}

if [[ ${1:-} == --inside ]]; then
    SUITE=$2 ROOT=$3 LOGS=$4 FAILED=0
    WORK=$(dirname "$LOGS") DEBIAN=$(debian_of "$SUITE")
    mount --make-rprivate /
    if [[ $SUITE == bare* ]]; then
        # shellcheck source=tests/matrix/bare.sh
        source "$CHECKOUT/tests/matrix/bare.sh"
        bare
    else
        suite
    fi
    exit "$((FAILED > 0))"
fi

# --- one suite after the other --------------------------------------------------------------------

SUITES=("$@")
((${#SUITES[@]})) || SUITES=(bookworm trixie sid bare)
REASON=$(unusable)
if [[ -n $REASON ]]; then
    say "${SUITES[*]}: skipped, as $REASON"
    exit 0
fi
WORK=$(mktemp -d "${SCRATCH:-/var/tmp}/relocate-matrix.XXXX")
LOGS=$WORK/logs
mkdir "$LOGS"
RESULT=0 CHILD=''
# shellcheck disable=SC2329
finish() {
    trap - EXIT
    trap '' INT TERM HUP
    if [[ -n $CHILD ]]; then # all that runs in its namespace ends with it
        kill -KILL "$CHILD" 2>/dev/null || true # unshare ignores the others
        wait "$CHILD" 2>/dev/null || true
    fi
    for _ in {1..50}; do # until the last of its mounts is gone
        rm -rf --one-file-system "$WORK/root" 2>/dev/null && break
        sleep 0.1
    done
    if ((RESULT == 0)) && [[ -z ${KEEP:-} ]]; then
        rm -rf "$WORK"
    else
        say "the logs are in $LOGS"
    fi
    exit "$RESULT"
}
trap finish EXIT
trap 'RESULT=130; exit' INT
trap 'RESULT=143; exit' TERM HUP

for name in "${SUITES[@]}"; do
    if [[ ! -e /usr/share/debootstrap/scripts/$(debian_of "$name") ]]; then
        say "$name: skipped, as debootstrap does not know it"
        continue
    fi
    if (($(df --output=avail -k "$WORK" | tail -n 1) < ROOM_KB)); then
        say "$name: skipped, as less than $((ROOM_KB / 1000)) MB are free in $WORK"
        continue
    fi
    mkdir -m 755 "$WORK/root"
    chmod 755 "$WORK"
    unshare --mount --pid --fork --kill-child \
        bash "${BASH_SOURCE[0]}" --inside "$name" "$WORK/root" "$LOGS" &
    CHILD=$!
    wait "$CHILD" || RESULT=1
    CHILD=''
    rm -rf --one-file-system "$WORK/root"
done
