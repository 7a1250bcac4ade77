#!/usr/bin/env bash
# Installs what the outside-in tests need, pinned, into .cache/ (or $OSTLER_TEST_CACHE): Node where
# the system's is too old, the npm packages of tests/*, the two lines of the PyPI client, servers from PyPI, and what
# the sandboxes of workers and the examples need, for which root also installs Debian packages. Does nothing where all is in place. `scripts/test.sh` runs it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

# The Inspector asks for the newest Node of all.
NODE_MAJOR=22 NODE_MINOR=19

digest() { sha256sum "$@" | sha256sum | cut -c1-12; }

# npm_packages FOLDER: the packages of FOLDER/package-lock.json, as FOLDER/node_modules.
npm_packages() {
  local folder=$ROOT/$1 name=${1//\//-} home
  home=$CACHE/npm/$name-$(digest "$folder/package.json" "$folder/package-lock.json")
  if [ ! -d "$home/node_modules" ]; then
    say "npm packages of $1"
    rm -rf "$home.part"
    mkdir -p "$home.part"
    cp "$folder/package.json" "$folder/package-lock.json" "$home.part/"
    # No package here needs its install script, and a lock file without one runs nobody's code.
    ( cd "$home.part" && download npm ci --ignore-scripts --no-audit --no-fund --loglevel=error )
    rm -rf "$home"
    mv "$home.part" "$home"
  fi
  if [ ! -L "$folder/node_modules" ]; then rm -rf "$folder/node_modules"; fi
  ln -sfn "$home/node_modules" "$folder/node_modules"
}

# python_packages NAME FILE: what FILE says, in the environment NAME.
python_packages() {
  local wanted=$ROOT/$2 home=$CACHE/python-$1
  if [ -x "$home/bin/python" ] && cmp -s "$wanted" "$home/installed.txt"; then return; fi
  ensure_python
  say "Python packages of $2"
  rm -rf "$home"
  python3 -m venv "$home" || die "python3 -m venv failed. Install it: sudo apt-get install -y python3-venv"
  download "$home/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$wanted"
  cp "$wanted" "$home/installed.txt"
}

mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"
flock -w "$DOWNLOAD_LIMIT_S" 9 || die "another set-up has held $CACHE/.lock for $DOWNLOAD_LIMIT_S s"
ensure_node "$NODE_MAJOR" "$NODE_MINOR"
npm_packages tests/fixtures/mcp-server
npm_packages tests/conformance
npm_packages tests/clients
npm_packages tests/leak
python_packages clients-v1 tests/clients/requirements-v1.txt
python_packages clients-v2 tests/clients/requirements-v2.txt
python_packages leak tests/leak/requirements.txt
# What builds sandboxes. The examples. For desktops: an X server, a window manager, a browser and letters for it; for MuJoCo: OpenGL without a
# screen, drawn by Mesa in software.
ensure_debian bubblewrap chromium fonts-dejavu-core openbox xvfb libegl1 libgl1 libgl1-mesa-dri
python_packages desktop examples/desktop/requirements.txt
python_packages mujoco examples/mujoco/requirements.txt
say "the tests' dependencies are in place (node $(node --version))"
