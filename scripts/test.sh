#!/usr/bin/env bash
# Every test: the workspace's own, then the official conformance suite, real MCP clients and the examples against
# the binary. Installs what it needs first. Each step has a time limit; all steps run even if one
# fails. The last line is `N passed, M failed`; the exit status is 0 when M is 0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Limits in seconds. A cold build takes most of the first on two cores; the others take a minute or two.
SETUP_LIMIT_S=900 CARGO_LIMIT_S=1200 UNIT_LIMIT_S=60 CONFORMANCE_LIMIT_S=420 CLIENTS_LIMIT_S=420 LEAK_LIMIT_S=420 MUJOCO_LIMIT_S=240 DESKTOP_LIMIT_S=240

passed=0 failed=0
# The steps that run, by name: the pid of each, which leads a process group of its own.
declare -A running=() limit_of=()
logs=$(mktemp -d)
# Ends the steps that are running, by their process groups, and nothing else.
clean_up() {
  local pid
  for pid in "${running[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
  for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$logs"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# begin_step NAME LIMIT_S COMMAND...: starts a step, beside what else runs; its output goes to $logs/NAME.
begin_step() {
  local name=$1 limit=$2
  shift 2
  : >"$logs/$name"
  set -m                                   # a process group of its own, with signals as they are by default
  timeout -k 20 "$limit" "$@" >"$logs/$name" 2>&1 </dev/null &
  running[$name]=$! limit_of[$name]=$limit
  set +m
}

# end_step NAME: shows its output as it comes, and gives its exit status.
end_step() {
  local name=$1 status=0 follower pid=${running[$1]}
  say "$name"
  # In the background, because bash acts on a signal only between foreground commands; it ends with the step.
  tail -n +1 -s 0.2 -f --pid="$pid" "$logs/$name" &
  follower=$!
  wait "$pid" || status=$?
  unset "running[$name]"
  wait "$follower" || true
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then say "$name: stopped after its limit of ${limit_of[$name]} s"; fi
  return "$status"
}

run_step() {
  begin_step "$@"
  end_step "$1"
}

# add NAME STATUS PASSED FAILED: adds a step to the total. A step that ended badly, or that counted nothing, has failed.
add() {
  local name=$1 status=$2 good=${3:-0} bad=${4:-0}
  if [ "$bad" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$good" -eq 0 ]; }; then bad=1; fi
  passed=$((passed + good))
  failed=$((failed + bad))
  summary+=("$(printf '%-14s %5d passed, %d failed' "$name" "$good" "$bad")")
}
summary=()

# sum_of FILE PATTERN: the sum of the first group of an extended regular expression over all lines.
sum_of() { sed -nE "s/.*$2.*/\1/p" "$1" | awk '{ total += $1 } END { print total + 0 }'; }

cargo_step() {
  local name=$1 status=0
  shift
  run_step "$name" "$CARGO_LIMIT_S" "$@" || status=$?
  add "$name" "$status" "$(sum_of "$logs/$name" '^test result: .* ([0-9]+) passed;')" "$(sum_of "$logs/$name" '^test result: .* ([0-9]+) failed;')"
}

# A step whose last line is its own `N passed, M failed`.
counted_step() {
  begin_step "$@"
  end_counted "$1"
}

end_counted() {
  local name=$1 status=0 last
  end_step "$name" || status=$?
  last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$logs/$name" | tail -n 1) || last='0 passed, 1 failed'
  add "$name" "$status" "$(cut -d' ' -f1 <<<"$last")" "$(cut -d' ' -f3 <<<"$last")"
}

node_step() {
  local name=$1 status=0
  shift
  run_step "$name" "$UNIT_LIMIT_S" "$@" || status=$?
  add "$name" "$status" "$(sum_of "$logs/$name" '^# pass ([0-9]+)')" "$(sum_of "$logs/$name" '^# fail ([0-9]+)')"
}

need_rust
# What is installed is mostly waited for, so it is built meanwhile.
begin_step dependencies "$SETUP_LIMIT_S" "$ROOT/scripts/setup-test-deps.sh"
# What does not build is told again below, and counts there.
run_step building "$CARGO_LIMIT_S" cargo test --workspace --locked --no-run || true
end_step dependencies
ensure_node 22 19

# `cargo test` rather than nextest: it runs the documentation's examples too. Its tests mostly wait for processes.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}
cargo_step cargo-test cargo test --workspace --locked --no-fail-fast
# A build of its own: no other test and no binary has the simulated ends of pipes in it.
cargo_step simulation cargo test -p ostler-testkit --features sim --test sim --locked
node_step harness node --test --test-reporter=tap tests/conformance/verdicts.test.mjs

# The binary that its own tests ran: another `cargo build` would build half of the dependencies again, with other
# features.
OSTLER_BIN=$(target_dir)/debug/ostler
if [ -x "$OSTLER_BIN" ]; then
  export OSTLER_BIN
  # What is kept of a run.
  export OSTLER_TEST_ARTEFACTS=${OSTLER_TEST_ARTEFACTS:-$(dirname "$(dirname "$OSTLER_BIN")")/artefacts}
  # They mostly wait for processes to start: two lanes of them are done sooner than one.
  begin_step clients "$CLIENTS_LIMIT_S" node tests/clients/run.mjs
  counted_step conformance "$CONFORMANCE_LIMIT_S" node tests/conformance/run.mjs
  counted_step leak "$LEAK_LIMIT_S" node tests/leak/run.mjs
  end_counted clients
  counted_step mujoco "$MUJOCO_LIMIT_S" python3 tests/examples/mujoco/run.py
  counted_step desktop "$DESKTOP_LIMIT_S" python3 tests/examples/desktop/run.py
  say "pictures to be looked at: $OSTLER_TEST_ARTEFACTS"
else
  say "there is no $OSTLER_BIN: it did not build"
  add conformance 1 0 1
  add clients 1 0 1
  add leak 1 0 1
  add mujoco 1 0 1
  add desktop 1 0 1
fi

say "summary"
printf '%s\n' "${summary[@]}"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
