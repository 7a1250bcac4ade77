#!/usr/bin/env bash
# Format, lints, documentation, licences and sources of dependencies, and the scripts themselves.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

CARGO_DENY=0.20.2

need_rust
say "scripts"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh .ci/run; else say "shellcheck is not installed: skipped"; fi

# A lock file that names a registry's host ties a clone to one network.
if grep -rlE '"resolved": *"https?:' --include=package-lock.json --exclude-dir=node_modules tests bench web 2>/dev/null; then
  die "the lock files above name a registry's host: rewrite them with \`npm install --package-lock-only --omit-lockfile-registry-resolved\`"
fi

say "cargo fmt"
cargo fmt --all --check
say "cargo clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings
say "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

deny=$CACHE/tools/bin/cargo-deny
if command -v cargo-deny >/dev/null && [ "$(cargo-deny --version)" = "cargo-deny $CARGO_DENY" ]; then deny=cargo-deny; fi
if ! command -v "$deny" >/dev/null; then
  say "installing cargo-deny $CARGO_DENY into $CACHE/tools (a few minutes, once)"
  cargo install --quiet --locked cargo-deny --version "$CARGO_DENY" --root "$CACHE/tools"
fi
say "cargo deny"
"$deny" --locked check bans licenses sources
say "lint passed"
