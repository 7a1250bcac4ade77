#!/usr/bin/env bash
# Builds Ostler and starts the quickstart: three MCP servers from npm behind one address.
# Arguments are passed on to `ostler up`. Stop it with Ctrl-C, or `ostler down` from elsewhere.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

need_rust
ensure_node 18 0                             # the quickstart's servers are started with npx
say "building Ostler (the first time takes a few minutes)"
cargo build --release --locked -p ostler
exec "$(target_dir)/release/ostler" up "$@" examples/quickstart/ostler.toml
