# A machine without any Python: a release that brings its own is deployed on it, and tried. This is
# sourced by run.sh.
#
# Salt's own Python is another one, as in a onedir: unpacked from a bundle at /opt/salt. Bundles are
# packed on the machine that runs this, from the Pythons there that can be packed: the newest one for
# the app, the next one for Salt.
#
#   PREFIXES="DIR DIR"   other Pythons: the first for Salt, each other one for an app
# shellcheck shell=bash

CORE_COMMAND=(env "PYTHONPATH=$CHECKOUT" python3 -m relocate_core)
APP_PACKAGES=(gunicorn 'psycopg[binary]' numpy lxml cryptography setuptools)
SYSTEM_PACKAGES=(ca-certificates tzdata)
BUILD_SECONDS=900

prefixes() { # the one for Salt, then those for apps
    local prefix found=()
    if [[ -n ${PREFIXES:-} ]]; then
        # shellcheck disable=SC2086
        printf '%s\n' $PREFIXES
        return
    fi
    while read -r prefix; do
        "${CORE_COMMAND[@]}" --pack-python "$WORK/none.tar" --dry-run "$prefix" &>/dev/null &&
            found+=("$prefix")
    done < <({
        pyenv prefix "$(pyenv versions --bare | paste -sd :)" | tr : '\n'
        find "$(uv python dir)" -maxdepth 1 -name 'cpython-*'
    } 2>/dev/null | grep -E '3\.(9|[1-9][0-9])\.' | sort -rV)
    ((${#found[@]} > 1)) || return 1
    printf '%s\n' "${found[1]}" "${found[0]}"
}

enter() { # COMMAND...: as root, in the root directory
    local variables=() file
    while IFS= read -r -d '' file; do variables+=("$file"); done < <(machine_variables |
        grep -zE '_(proxy|PROXY)=')
    timeout --kill-after=10 "$BUILD_SECONDS" chroot "$ROOT" env -i "${variables[@]}" HOME=/root \
        LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

make_bare_root() { # PREFIX: minimal, without any Python but that for Salt
    timeout "$MAKE_SECONDS" debootstrap --variant=minbase "$DEBIAN" "$ROOT" "$(mirror)" || return
    mount -t proc proc "$ROOT/proc"
    mount -t tmpfs -o mode=1777,size=256m tmpfs "$ROOT/dev/shm"
    configure_apt || return
    if enter sh -c 'command -v python3 || command -v python'; then
        echo 'it has a Python, which it should not'
        return 1
    fi
    mkdir -p "$ROOT/opt/core" "$ROOT/opt/salt" "$ROOT/srv/bundles"
    cp -r "$CHECKOUT/relocate_core" "$ROOT/opt/core/"
    cp -r "$CHECKOUT/tests/matrix/bare" "$ROOT/opt/"
    "${CORE_COMMAND[@]}" --pack-python "$WORK/salt.tar" "$1" || return
    tar -xf "$WORK/salt.tar" -C "$ROOT/opt/salt"
    rm "$WORK/salt.tar"
    enter /opt/salt/bin/python3 -V
}

build_app() { # PREFIX: its bundle, and one of an app that runs on it
    local venv=$WORK/app
    rm -rf "$venv"
    "${CORE_COMMAND[@]}" --pack-python "$ROOT/srv/bundles/python.tar.gz" --keep headers "$1" &&
        "$1/bin/python3" -m venv "$venv" &&
        "$venv/bin/pip" install -q "${APP_PACKAGES[@]}" &&
        "${CORE_COMMAND[@]}" --pack "$ROOT/srv/bundles/app.tar.gz" "$venv" || return
    rm -rf "$venv"
}

deploy() { # NAME
    enter /opt/salt/bin/python3 /opt/bare/deploy.py /opt/core /srv/bundles/app.tar.gz \
        /srv/bundles/python.tar.gz "/srv/shop/$1"
}

without_libraries() { # NAME: each problem is one of the system, with what to do
    deploy "$1" | tee "$WORK/without" || return
    ! grep '^problem: ' "$WORK/without" | grep -v ': install '
}

with_libraries() { # NAME: and none is left once that was done
    local wanted=("${SYSTEM_PACKAGES[@]}") library
    while read -r library; do
        wanted+=("$(package_of "$library")") || return
    done < <(grep -oE '\blib[^ ]+ is not installed' "$WORK/without" | cut -d' ' -f1 | sort -u)
    enter apt-get install -qq -y --no-install-recommends "${wanted[@]}" || return
    deploy "$1" | tee "$WORK/with" || return
    grep -q ', 0 problems$' "$WORK/with"
}

package_of() { # the one of Debian that has a shared library: libssl3 or libssl3t64 has libssl.so.3
    local base=${1%%.so*} version=${1##*.so.} name
    case $base in
    libcrypto) base=libssl ;;
    libsqlite3) version=-0 ;;
    libbz2) version=-1.0 ;;
    libpanelw | libncursesw) base=libncursesw ;;
    libz) base=zlib version=1g ;;
    esac
    for name in "$base$version" "$base${version}t64"; do
        if enter apt-cache show --no-all-versions "$name" &>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    echo "no package of $DEBIAN has $1" >&2
    return 1
}

checks() { # NAME PREFIX [CHECK]
    enter "/srv/shop/$1/bin/python" /opt/bare/checks.py "$2" "${@:3}"
}

compiler() { enter apt-get install -qq -y --no-install-recommends gcc libc6-dev; }

bare() {
    local prefix number=0 all
    if ! mapfile -t all < <(prefixes) || ((${#all[@]} < 2)); then
        say "$SUITE: skipped, as fewer than two Pythons with a prefix of their own are here"
        return 0
    fi
    report 'root directory without Python' "$LOGS/$SUITE-root.log" make_bare_root "${all[0]}" ||
        return 0
    for prefix in "${all[@]:1}"; do
        number=$((number + 1))
        local title log
        title=$(basename "$prefix") log=$LOGS/$SUITE-$number
        report "$title: packed" "$log-build.log" build_app "$prefix" || continue
        report "$title: deployed without libraries" "$log-without.log" \
            without_libraries "$number-a" || continue
        report "$title: deployed with them" "$log-with.log" with_libraries "$number-b" || continue
        report "$title: checks" "$log-checks.log" checks "$number-b" "$prefix" || true
        report "$title: a compiler" "$log-compiler.log" compiler || continue
        report "$title: an sdist" "$log-sdist.log" checks "$number-b" "$prefix" extension || true
    done
}
