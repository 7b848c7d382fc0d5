#!/usr/bin/env bash
# Three releases of a real Django site: built and packed in one place, deployed in another by a
# masterless minion, served by gunicorn. The second one replaces the first; the third one is broken,
# and the highstate itself goes back. Needs no root; all of it happens in one scratch folder.
#
#   make demo            the folder is removed at the end
#   KEEP=1 make demo     the folder stays, to look around in
set -euo pipefail
shopt -s inherit_errexit 2>/dev/null || true

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-python3}
SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/relocate-demo.XXXX")
SCRATCH=$(cd "$SCRATCH" && pwd -P)
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
    if [[ -s $SCRATCH/run/pid ]]; then
        kill "$(<"$SCRATCH/run/pid")" 2>/dev/null && sleep 0.5 || true
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
    local words=() word
    for word in "$@"; do
        [[ $# -gt 1 && $word == *[\ \{]* ]] && word="'$word'"
        words+=("$word")
    done
    printf '%s$ %s%s\n' "$GREEN" "${words[*]}" "$PLAIN"
}

indent() { # in a pipe, so that output shows while it comes
    sed -u 's/^/    /'
}

run() { # show a simple command, then run it
    show "$*"
    "$@" 2>&1 | indent
}

salt() { # a call of Salt's, without a master
    show salt-call --local -c etc "$@"
    salt-call --local -c etc --log-level quiet "${COLOR[@]}" "$@" 2>&1 | indent
}

fails() { # the same, for a call that has to fail
    salt "$@" && { echo 'demo: this was expected to fail, and did not.' >&2; exit 1; }
    printf '%s    (exit code %s)%s\n' "$DIM" "${PIPESTATUS[0]}" "$PLAIN"
}

need() {
    command -v "$1" >/dev/null && return
    printf 'demo: %s is not on the PATH; `make demo` brings its own.\n' "$1" >&2
    exit 1
}

SECONDS=0
need "$PYTHON"
need salt-call
need virtualenv-tools
cd "$SCRATCH"
echo "In $SCRATCH, with Python $("$PYTHON" -c 'import platform; print(platform.python_version())')" \
    "and $(salt-call --version)."

# The minion: no master, its modules out of this checkout, its files below the scratch folder.
mkdir -p etc file_root/shop log run
ln -s "$CHECKOUT/_modules" "$CHECKOUT/_states" "$CHECKOUT/_utils" file_root/
cat >etc/minion <<END
id: demo
file_client: local
file_roots: {base: ["$SCRATCH/file_root"]}
root_dir: $SCRATCH/minion
pki_dir: $SCRATCH/minion/pki
log_file: $SCRATCH/log/minion
log_level: error
state_output: changes
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

commit() { # TITLE [LINE]: change the site
    cat >build/shop/shop/urls.py <<END
import os
import sys

from django.http import HttpResponse
from django.urls import path


def home(request):
    ${2:-pass}
    return HttpResponse(f"$1, release {os.path.basename(sys.prefix)}\n", content_type="text/plain")


urlpatterns = [path("", home)]
END
    HASH=$("$PYTHON" -c 'import hashlib, sys
print(hashlib.sha1(open(sys.argv[1], "rb").read()).hexdigest()[:10])' build/shop/shop/urls.py)
}

step 'The first commit is packed with tar: any tarball of a virtualenv will do'
commit 'The shop opens'
FIRST=$HASH
run tar -czf "file_root/shop/$FIRST.tar.gz" -C build/shop .

step 'The second one becomes a bundle, which knows what it holds: servers have less to do'
commit 'The shop sells'
SECOND=$HASH
show "salt-call --local -c etc saltutil.sync_all"
salt-call --local -c etc saltutil.sync_all >log/sync
salt virtualenv_tools.pack "$SCRATCH/build/shop" "$SCRATCH/file_root/shop/$SECOND.tar.gz"

step 'The third one has a bug. It is packed twice: whole, and with only what the second one lacks'
commit 'The shop crashes' 'raise RuntimeError("out of stock")'
THIRD=$HASH
PACK="virtualenv-tools --pack file_root/shop/$THIRD"
run $PACK.tar.gz build/shop
run $PACK.from-$SECOND.tar.gz --against "file_root/shop/$SECOND.tar.gz" build/shop
run rm -rf build
run ls -s --block-size=1 file_root/shop

step 'Unpacked with tar, it does not run: its files name the place where it was built'
run mkdir plain
run tar xzf "file_root/shop/$FIRST.tar.gz" -C plain
show 'plain/bin/gunicorn --version'
if plain/bin/gunicorn --version >log/broken 2>&1; then
    echo 'demo: gunicorn was expected not to start, but did.' >&2
    exit 1
fi
sed 's|^.*: line [0-9]*: ||' log/broken | indent
rm -rf plain

PORT=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
# In place of a process manager, which not every machine has: stop the old gunicorn, start the new.
# It is started by its script, whose first line names the release; gunicorn's own control socket
# would be put into the home folder.
cat >run/restart <<END
#!/bin/sh
cd "$SCRATCH/run" || exit 1
if [ -s pid ]; then
    kill "\$(cat pid)" && while [ -e pid ]; do sleep 0.1; done
fi
env -u XDG_RUNTIME_DIR HOME="$SCRATCH/run" ../srv/shop/current/bin/gunicorn \\
    --chdir "\$(readlink -f ../srv/shop/current)" --bind 127.0.0.1:$PORT \\
    --pid "$SCRATCH/run/pid" --daemon shop.wsgi
END
chmod +x run/restart

step 'The highstate: what an operator writes'
cat >file_root/shop/init.sls <<END
{% set root = "$SCRATCH/srv/shop" %}
{% set release = pillar["release"] %}

{{ root }}/{{ release }}:
  virtualenv_relocated.managed:
    - source: salt://shop/{{ release }}.tar.gz
    - smoke: python -c 'import shop.wsgi'

{{ root }}/current:
  virtualenv_relocated.active:
    - target: {{ release }}
    - require:
      - virtualenv_relocated: {{ root }}/{{ release }}

gunicorn:
  cmd.run:
    - name: $SCRATCH/run/restart
    - onchanges:
      - virtualenv_relocated: {{ root }}/current

the shop answers:
  virtualenv_relocated.healthy:
    - link: {{ root }}/current
    - checks:
      - url: http://127.0.0.1:$PORT/
        match: The shop
    - attempts: 5
    - watch:
      - cmd: gunicorn

{{ root }}:
  virtualenv_relocated.pruned:
    - keep: 3
    - require:
      - virtualenv_relocated: the shop answers
END
run cat file_root/shop/init.sls

fetch() { # the page, as a visitor sees it; it has to begin with these words
    show "curl http://127.0.0.1:$PORT/"
    "$PYTHON" -c 'import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(
        sys.argv[1], timeout=5).read().decode(), end="")' "http://127.0.0.1:$PORT/" >log/page
    indent <log/page
    grep -q "^$1" log/page || { echo "demo: the page was expected to begin with: $1" >&2; exit 1; }
}

step 'The first release: what would happen'
salt state.apply shop "pillar={release: $FIRST}" test=True

step 'The first release: deployed, relocated, put onto this Python, tried, linked, started, checked'
salt state.apply shop "pillar={release: $FIRST}"
fetch "The shop opens, release $FIRST"

step 'Once more: nothing to do'
salt state.apply shop "pillar={release: $FIRST}"

step 'The second release, out of a bundle: a switch'
salt state.apply shop "pillar={release: $SECOND}"
fetch "The shop sells, release $SECOND"

step 'The third release takes over what did not change. It is broken: the highstate goes back itself'
fails state.apply shop "pillar={release: $THIRD}"
fetch "The shop sells, release $SECOND"

step 'The next highstate does not bring it back'
fails state.apply shop "pillar={release: $THIRD}"

step 'An operator goes back by hand: at once, without a download'
salt virtualenv_tools.rollback "$SCRATCH/srv/shop" reason='the prices are wrong'
run run/restart
for _ in {1..50}; do
    "$PYTHON" -c "import socket; socket.create_connection(('127.0.0.1', $PORT), 1)" 2>/dev/null && break
    sleep 0.1
done
fetch "The shop opens, release $FIRST"

step 'What there is, and what happened'
run ls -l srv/shop
salt virtualenv_tools.releases "$SCRATCH/srv/shop"
salt virtualenv_tools.history "$SCRATCH/srv/shop"

printf '\n%sDone in %s s: two releases deployed and switched, a broken one rolled back.%s\n' \
    "$BOLD" "$SECONDS" "$PLAIN"
