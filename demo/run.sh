#!/usr/bin/env bash
# A release's whole way, with a real Django site: built in one place, packed, unpacked in another,
# made at home there by Salt, and served. Needs no root; all of it happens in one scratch folder.
#
#   make demo            the folder is removed at the end
#   KEEP=1 make demo     the folder stays, to look around in
set -euo pipefail
shopt -s inherit_errexit 2>/dev/null || true

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-python3}
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/relocate-demo.XXXX")
SCRATCH=$(cd "$SCRATCH" && pwd -P)
SERVER=
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
    COLOR=(--force-color)
else
    BOLD='' DIM='' GREEN='' RED='' PLAIN=''
    COLOR=(--no-color)
fi

finish() {
    local code=$?
    trap - EXIT
    if [[ -n $SERVER ]]; then
        kill "$SERVER" 2>/dev/null && wait "$SERVER" 2>/dev/null || true
    fi
    if ((code)); then
        printf '\n%sdemo: stopped with exit code %s in step %s%s\n' "$RED" "$code" "$STEP" "$PLAIN" >&2
    fi
    if [[ -n ${KEEP:-} ]]; then
        printf '%sdemo: kept in %s%s\n' "$DIM" "$SCRATCH" "$PLAIN"
    else
        rm -rf "$SCRATCH"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

STEP=0
step() {
    STEP=$((STEP + 1))
    printf '\n%s%s. %s%s\n' "$BOLD" "$STEP" "$1" "$PLAIN"
}

show() { # print a command as one would type it
    printf '%s$ %s%s\n' "$GREEN" "$*" "$PLAIN"
}

indent() { # in a pipe, so that output shows while it comes
    sed -u 's/^/    /'
}

run() { # show a simple command, then run it
    show "$*"
    "$@" 2>&1 | indent
}

salt() { # a call of Salt's, without a master
    show "salt-call --local -c etc $*"
    salt-call --local -c etc "${COLOR[@]}" "$@" 2>&1 | indent
}

need() {
    command -v "$1" >/dev/null && return
    printf 'demo: %s is not on the PATH; `make demo` brings its own.\n' "$1" >&2
    exit 1
}

SECONDS=0
need "$PYTHON"
need salt-call
cd "$SCRATCH"
echo "In $SCRATCH, with Python $("$PYTHON" -c 'import platform; print(platform.python_version())')" \
    "and $(salt-call --version)."

# The minion: no master, its modules out of this checkout, its files below the scratch folder.
mkdir -p etc minion file_root log srv/shop
ln -s "$CHECKOUT/_modules" "$CHECKOUT/_utils" file_root/
cat >etc/minion <<END
id: demo
file_client: local
file_roots: {base: ["$SCRATCH/file_root"]}
root_dir: $SCRATCH/minion
pki_dir: $SCRATCH/minion/pki
log_file: $SCRATCH/log/minion
log_level: error
enable_fqdns_grains: False
END

step 'On the build machine: a virtualenv with Django, gunicorn and a small site'
# The build machine keeps its Python elsewhere than the server does.
BUILD_PYTHON=build/python/bin/python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
mkdir -p build/python/bin
ln -s "$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))')" "$BUILD_PYTHON"
run "$BUILD_PYTHON" -m venv build/shop
run build/shop/bin/pip install --quiet django gunicorn
run build/shop/bin/django-admin startproject shop build/shop
cat >build/shop/shop/urls.py <<'END'
import os
import sys

import django
from django.http import HttpResponse
from django.urls import path


def home(request):
    return HttpResponse(
        f"release     {os.path.basename(sys.prefix)}\n"
        f"sys.prefix  {sys.prefix}\n"
        f"django      {django.__file__}\n",
        content_type="text/plain",
    )


urlpatterns = [path("", home)]
END

step 'Pack it, name it after what is in it, and take the build away'
run tar czf shop.tar.gz -C build/shop .
HASH=$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha1(open(sys.argv[1], "rb").read()).hexdigest())' \
    shop.tar.gz)
show sha1sum shop.tar.gz
echo "$HASH  shop.tar.gz" | indent
run rm -rf build

step 'On the server: unpack it at its place'
RELEASE=$SCRATCH/srv/shop/$HASH
run mkdir "srv/shop/$HASH"
run tar xzf shop.tar.gz -C "srv/shop/$HASH"

step 'It does not run here: its files still name the place where it was built'
show "srv/shop/$HASH/bin/gunicorn --version"
if "srv/shop/$HASH/bin/gunicorn" --version >log/broken 2>&1; then
    echo 'demo: gunicorn was expected not to start, but did.' >&2
    exit 1
fi
sed 's|^.*: line [0-9]*: ||' log/broken | indent
run head -n 1 "srv/shop/$HASH/bin/gunicorn"

step 'The minion learns the module'
show "salt-call --local -c etc saltutil.sync_all | grep -e '- modules' -e '- states'"
salt-call --local -c etc saltutil.sync_all | grep -e '- modules' -e '- states' |
    sed 's/^ *//' | indent

step 'What would be changed'
salt virtualenv_tools.update_path "$RELEASE" test=True

step 'Relocate it'
salt virtualenv_tools.update_path "$RELEASE"

step "Onto this machine's Python"
salt virtualenv_tools.reinitialize "$RELEASE"

step 'Can it run here?'
salt virtualenv_tools.check "$RELEASE"

step 'Make it the current release, and serve it'
run ln -sfn "$HASH" srv/shop/current
PORT=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
show "srv/shop/current/bin/gunicorn --chdir srv/shop/current --bind 127.0.0.1:$PORT shop.wsgi &"
# gunicorn keeps a socket of its own in the home folder; the demo leaves nothing there.
env -u XDG_RUNTIME_DIR HOME="$SCRATCH" \
    srv/shop/current/bin/gunicorn --chdir srv/shop/current --bind "127.0.0.1:$PORT" shop.wsgi \
    >log/gunicorn 2>&1 &
SERVER=$!

fetch() {
    "$PYTHON" -c 'import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(
        sys.argv[1], timeout=5).read().decode(), end="")' "$1"
}
for _ in {1..50}; do
    kill -0 "$SERVER" 2>/dev/null || break
    fetch "http://127.0.0.1:$PORT/" >log/page 2>/dev/null && break
    sleep 0.2
done
show "curl http://127.0.0.1:$PORT/"
indent <log/page
if ! grep -q "^release     $HASH$" log/page; then
    indent <log/gunicorn >&2
    echo 'demo: the site did not answer; above is what gunicorn said.' >&2
    exit 1
fi

printf '\n%sDone in %s s: built at build/shop, relocated to srv/shop/%.7s, and it answers.%s\n' \
    "$BOLD" "$SECONDS" "$HASH" "$PLAIN"
