#!/usr/bin/env bash
# Four releases of a real Django site with a database: built and packed in one place, deployed in
# another by the formula on a masterless minion, served by gunicorn under supervisor. The second one
# migrates the database; the third one does so too and is broken: the highstate itself rolls back,
# and the schema with it. The fourth one brings its own Python, so that the server needs none. Needs
# no root; all of it happens in one scratch directory.
#
#   make demo            the directory is removed at the end
#   KEEP=1 make demo     the directory stays, to look around in
set -euo pipefail
shopt -s inherit_errexit 2>/dev/null || true

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PYTHON=${PYTHON:-python3}
PLACE=$(cd "${TMPDIR:-/tmp}" && pwd -P)
if [[ $PLACE =~ [^A-Za-z0-9/._+-] ]]; then
    echo "demo: supervisor's configuration takes no path like $PLACE, so it happens below /tmp." >&2
    PLACE=/tmp
fi
SCRATCH=$(mktemp -d "$PLACE/relocate-demo.XXXX")
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
export PYTHONWARNINGS=ignore::DeprecationWarning # of modules of Salt itself
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME XDG_RUNTIME_DIR
# Temporary files of pip, tar and Salt go with the directory, however this ends.
export TMPDIR=$SCRATCH/tmp

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
    COLOR=(--force-color)
else
    BOLD='' DIM='' GREEN='' RED='' PLAIN=''
    COLOR=(--no-color)
fi

STEP=0 SUPERVISORD=''
finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP # nor does a second Control-C leave anything behind
    if [[ -n $SUPERVISORD ]]; then # it ends its programs, then itself
        kill "$SUPERVISORD" 2>/dev/null || true
        wait "$SUPERVISORD" || true
    fi
    if ((code && STEP)); then
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
trap 'exit 129' HUP

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
if ! ME=$(id -un 2>/dev/null); then
    echo "demo: Salt does not run as a user without a name, as $(id -u) is here." >&2
    exit 1
fi
need "$PYTHON"
need salt-call
need virtualenv-tools
cd "$SCRATCH"
echo "In $SCRATCH, with Python $("$PYTHON" -c 'import platform; print(platform.python_version())')" \
    "and $(salt-call --version)."

# The minion: no master, its modules and the formula out of this checkout, its files below the
# scratch directory.
mkdir -p etc pillar file_root/shop log run/conf.d tmp
ln -s "$CHECKOUT/_modules" "$CHECKOUT/_states" "$CHECKOUT/_utils" file_root/
cat >etc/minion <<END
id: demo
file_client: local
file_roots: {base: ["$SCRATCH/file_root", "$CHECKOUT/formula"]}
pillar_roots: {base: ["$SCRATCH/pillar"]}
root_dir: $SCRATCH/minion
pki_dir: $SCRATCH/minion/pki
log_file: $SCRATCH/log/minion
log_level: error
state_output: changes
state_output_profile: False
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
mkdir -p build/shop/goods/migrations
touch build/shop/goods/__init__.py build/shop/goods/migrations/__init__.py
# Its database is shared by all releases: a link in each of them, var, points to it.
cat >>build/shop/shop/settings.py <<'END'
INSTALLED_APPS += ["goods"]
DATABASES["default"]["NAME"] = BASE_DIR / "var" / "db.sqlite3"
END

commit() { # TITLE FIELDS [LINE [MORE]]: change the site and what its database holds
    cat >build/shop/goods/models.py <<END
from django.db import models


class Article(models.Model):
    name = models.CharField(max_length=80)
$2
END
    cat >build/shop/shop/urls.py <<END
import os
import sys

from django.http import HttpResponse
from django.urls import path
from goods.models import Article


def home(request):
    ${3:-pass}
    tea, _ = Article.objects.get_or_create(name="tea")
    row = Article.objects.values().get(pk=tea.pk)
    release = os.path.basename(sys.prefix)
    page = f"$1: {row}, release {release}${4:-}\n"
    return HttpResponse(page, content_type="text/plain")


urlpatterns = [path("", home)]
END
    run build/shop/bin/python -W ignore build/shop/manage.py makemigrations --verbosity 1 goods
    HASH=$("$PYTHON" -c 'import hashlib, sys
print(hashlib.sha1(open(sys.argv[1], "rb").read()).hexdigest()[:10])' build/shop/shop/urls.py)
}

step 'The first commit is packed with tar: any tarball of a virtualenv will do'
commit 'The shop opens' ''
FIRST=$HASH
run tar -czf "file_root/shop/$FIRST.tar.gz" -C build/shop .

step 'The second one needs a new column. It becomes a bundle: servers have less to do'
commit 'The shop sells' '    price = models.IntegerField(default=3)'
SECOND=$HASH
run virtualenv-tools --pack "file_root/shop/$SECOND.tar.gz" build/shop

step 'The third one too, and has a bug. It is packed twice: in full, and as a delta from the second'
commit 'The shop crashes' '    price = models.IntegerField(default=3)
    stock = models.IntegerField(default=0)' 'raise RuntimeError("out of stock")'
THIRD=$HASH
PACK="virtualenv-tools --pack file_root/shop/$THIRD"
run $PACK.tar.gz build/shop
run $PACK.from-$SECOND.tar.gz --delta-from "file_root/shop/$SECOND.tar.gz" build/shop

step 'The fourth one fixes it. Its Python is packed as well: once, for all apps and releases'
commit 'The shop is fixed' '    price = models.IntegerField(default=3)
    stock = models.IntegerField(default=0)' pass ' on {sys.base_prefix}'
FOURTH=$HASH
run virtualenv-tools --pack "file_root/shop/$FOURTH.tar.gz" build/shop
run mkdir file_root/pythons
PREFIX=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')
show virtualenv-tools --pack-python file_root/pythons/python.tar.gz "$PREFIX"
OWN=yes
virtualenv-tools --pack-python file_root/pythons/python.tar.gz "$PREFIX" >log/python 2>&1 || OWN=''
indent <log/python
if [[ -z $OWN ]]; then # that of a distribution, most of the time
    grep -q '^cannot pack' log/python || exit 1
    printf '%s    (the demo goes on without it)%s\n' "$DIM" "$PLAIN"
fi
run rm -rf build
show 'du -h --apparent-size file_root/shop/*.tar.gz'
du -h --apparent-size file_root/shop/*.tar.gz | indent

step 'Unpacked with tar, it does not run: its files refer to the place where it was built'
run mkdir plain
run tar xzf "file_root/shop/$FIRST.tar.gz" -C plain
show 'plain/bin/gunicorn --version'
if plain/bin/gunicorn --version >log/broken 2>&1; then
    echo 'demo: gunicorn was expected not to start, but did.' >&2
    exit 1
fi
sed 's|^.*: line [0-9]*: ||' log/broken | indent
rm -rf plain

step 'On the server: this extension, and supervisor, as the distribution would have installed it'
show salt-call --local -c etc saltutil.sync_all
salt-call --local -c etc saltutil.sync_all >log/sync 2>&1
run "$PYTHON" -m venv manager
run manager/bin/pip install --quiet supervisor
PORT=$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >run/supervisord.conf <<END
[supervisord]
pidfile=$SCRATCH/run/supervisord.pid
logfile=$SCRATCH/log/supervisord.log
childlogdir=$SCRATCH/log
[unix_http_server]
file=$SCRATCH/run/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://$SCRATCH/run/supervisor.sock
[include]
files=$SCRATCH/run/conf.d/*.conf
END
show manager/bin/supervisord -c run/supervisord.conf
manager/bin/supervisord --nodaemon --silent -c run/supervisord.conf &
SUPERVISORD=$!
for _ in {1..100}; do
    [[ -S run/supervisor.sock ]] && break
    sleep 0.1
done

step 'The pillar: pillar.example of this repository, and what is different on this machine'
release() { # HASH: the one line that changes with a deploy
    sed -E "s/^( +release:) .*/\1 '$1'/" "$CHECKOUT/pillar.example" >pillar/releases.sls
}
release "$FIRST"
cat >pillar/here.sls <<END
releases:
  apps:
    shop:
      root: $SCRATCH/srv/shop
      user: $ME
      group: $(id -gn)
      programs:
        web:
          socket: 127.0.0.1:$PORT
          env: {HOME: $SCRATCH/run}
      health:
        checks:
          - url: http://127.0.0.1:$PORT/
            match: The shop
        attempts: 5
  supervisor:
    command: $SCRATCH/manager/bin/supervisorctl -c $SCRATCH/run/supervisord.conf
    conf_dir: $SCRATCH/run/conf.d
    log_dir: $SCRATCH/log
END
echo "base: {'*': [releases, here]}" >pillar/top.sls
show cat pillar/releases.sls
sed -E '/^ *(#|$)/d' pillar/releases.sls | indent
run cat pillar/here.sls

fetch() { # the page, as a visitor sees it; it has to begin and end with these words
    show "curl http://127.0.0.1:$PORT/"
    "$PYTHON" -c 'import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(
        sys.argv[1], timeout=5).read().decode(), end="")' "http://127.0.0.1:$PORT/" >log/page
    indent <log/page
    grep -q "^$1.*$2\$" log/page || {
        echo "demo: the page was expected to be: $1 ... $2" >&2
        exit 1
    }
}

step 'A mistake in the pillar is one sentence'
sed -i 's/release:/relase:/' pillar/releases.sls
fails state.apply releases
release "$FIRST"

step 'The first release: what would happen'
salt state.apply releases test=True

step 'The first release, from bare to a page that answers'
salt state.apply releases
fetch 'The shop opens' "release $FIRST"

step 'Again: nothing to do'
salt state.apply releases

step 'The second release, from a bundle: the schema is migrated'
release "$SECOND"
run grep release: pillar/releases.sls
salt state.apply releases
fetch "The shop sells.*'price': 3" "release $SECOND"

step 'The third one takes over what did not change. It is broken: the highstate itself rolls back'
release "$THIRD"
run grep release: pillar/releases.sls
fails state.apply releases
fetch "The shop sells.*'price': 3}" "release $SECOND"

step 'The schema is as before'
salt virtualenv_tools.run "$SCRATCH/srv/shop/current" 'python manage.py showmigrations goods'

step 'The next highstate does not bring it back'
fails state.apply releases

step 'An operator rolls back by hand: at once, without a download, the schema included'
salt state.apply releases.rollback
fetch "The shop opens: .*'name': 'tea'}" "release $FIRST"

RUNS_ON=' on .*'
if [[ -n $OWN ]]; then
    step 'The fourth release brings its own Python: the server need not have one'
    SHA256=$("$PYTHON" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' file_root/pythons/python.tar.gz)
    LINES="source: salt://pythons/python.tar.gz\n        source_hash: $SHA256"
    sed -i "s|^  supervisor:|      python:\n        $LINES\n&|" pillar/here.sls
    run grep -A 2 python: pillar/here.sls
    RUNS_ON=" on $SCRATCH/srv/pythons/cpython-.*"
else
    step 'The fourth release fixes it'
fi
release "$FOURTH"
run grep release: pillar/releases.sls
salt state.apply releases
fetch "The shop is fixed: .*'stock': 0}" "release $FOURTH$RUNS_ON"

step 'What there is, and what happened'
run ls -l srv/shop
salt virtualenv_tools.releases "$SCRATCH/srv/shop" --out=yaml
salt virtualenv_tools.history "$SCRATCH/srv/shop"

step 'The app is removed; what is shared stays'
salt state.apply releases.clean
run find srv -mindepth 1

printf '\n%sDone in %s s: three releases deployed and switched, a broken one rolled back.%s\n' \
    "$BOLD" "$SECONDS" "$PLAIN"
