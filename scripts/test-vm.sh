#!/usr/bin/env bash
# The process tests of `ostler-os` on a machine with cgroup v2 and nothing else: boots Debian's cloud kernel in
# qemu, emulated in software (a /dev/kvm within a virtual machine may be there and not work), with the tests in an
# initramfs, and reads the outcome from its serial console. Needs Debian (amd64): downloads the kernel and busybox into .cache/ without installing
# them; installs qemu-system-x86 as root, otherwise says so. The last line is `N passed, M failed`.
#
# `scripts/test-vm.sh FILTER` runs only the tests whose names contain FILTER.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

# Limits in seconds: for building, and for the machine from power on to power off. Emulated, it takes some minutes.
BUILD_LIMIT_S=1200 VM_LIMIT_S=900
VM_MEMORY_MIB=1024 VM_CPUS=2
FILTER=${1:-}

home=$CACHE/vm
work=$(mktemp -d)
vm=
clean_up() {
  if [ -n "$vm" ]; then kill "$vm" 2>/dev/null || true; wait "$vm" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[ "$(uname -m)" = x86_64 ] || die "the machine that is booted is x86_64, and so must this be"
need_rust
need_command apt-get "kernel and busybox come from Debian" "run this on Debian, or in a Debian container"
if ! command -v qemu-system-x86_64 >/dev/null; then
  [ "$(id -u)" -eq 0 ] || die "qemu-system-x86_64 is missing. Install it: sudo apt-get install -y qemu-system-x86"
  say "installing the Debian package qemu-system-x86"
  download apt-get update -q
  download env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends qemu-system-x86
fi

# fetch NAME PACKAGE: the files of a Debian package as $home/NAME, not installed.
fetch() {
  local into=$home/$1 package=$2 folder
  [ -e "$into/ready" ] && return
  say "downloading the Debian package $package"
  folder=$(mktemp -d "$work/deb.XXXXXX")
  # The sandboxed downloader of apt must be able to write here.
  chmod 755 "$work" "$folder"
  ( cd "$folder" && download apt-get download -q -o APT::Sandbox::User=root "$package" )
  rm -rf "$into"
  mkdir -p "$into"
  dpkg-deb -x "$folder"/*.deb "$into"
  touch "$into/ready"
}
mkdir -p "$home"
if [ ! -e "$home/kernel/ready" ] || [ ! -e "$home/busybox/ready" ]; then
  [ "$(id -u)" -ne 0 ] || download apt-get update -q
  # The package of this name is empty and depends on the newest kernel.
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -nE 's/^ *Depends: (linux-image-.*)$/\1/p' | head -n 1)
  [ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64. Try: sudo apt-get update"
  fetch kernel "$kernel"
  fetch busybox busybox-static
fi
vmlinuz=$(find "$home/kernel/boot" -name 'vmlinuz-*' | head -n 1)
busybox=$(find "$home/busybox" -name busybox -type f -perm -u+x | head -n 1)

say "building the tests"
timeout -k 10 "$BUILD_LIMIT_S" cargo test --locked -p ostler-os --test it --no-run 2>&1 | tee "$work/build" >&2
timeout -k 10 "$BUILD_LIMIT_S" cargo build --locked -p ostler-testkit --bin ostler-evil >&2
tests=$(sed -nE 's/^ *Executable tests\/it\/main\.rs \((.*)\)$/\1/p' "$work/build")
[ -x "$tests" ] || die "cargo did not say where the tests are"
programs=$(dirname "$(dirname "$tests")")

say "making the machine"
root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,tmp,etc,t}
cp "$busybox" "$root/bin/busybox"
cp "$tests" "$root/t/it"
cp "$programs/ostler-os-testbed" "$programs/ostler-evil" "$root/t/"
# The programs' libraries, at the paths where they look for them.
ldd "$root"/t/* | sed -nE 's/.*[[:space:]](\/[^ ]+) \(0x.*/\1/p' | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
done
printf 'root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
printf '%s' "$FILTER" >"$root/t/filter"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin RUST_BACKTRACE=0 OSTLER_OS_TESTBED=/t/ostler-os-testbed OSTLER_EVIL=/t/ostler-evil
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
cd /tmp
groups=/sys/fs/cgroup

# suite NAME COMMAND...: says how it ended.
suite() {
  name=$1
  shift
  echo "VM-BEGIN $name"
  "$@" </dev/null 2>&1
  echo "VM-END $name $?"
}
# One at a time: which cgroup a test's daemon may use depends on who else lives there.
tests() { /t/it --test-threads=1 --show-output "$@"; }
# in_group GROUP COMMAND...: as a service manager starts a service.
in_group() {
  group=$groups/$1
  shift
  sh -c 'echo 0 >"$0/cgroup.procs" && exec "$@"' "$group" "$@"
}
# Nothing of Ostler's may be left below a cgroup, but for what a daemon that had to move was in itself.
left() { find "$1" -type d -name 'ostler-*' ! -exec test -d '{}/daemon' ';' -print | grep . && return 1; return 0; }

# Not those that hold the promise of two seconds to the clock: an emulated machine is too slow to keep it. Nor the
# one about unchanged pages of program files: in an initramfs every page of a file counts as changed.
all() {
  OSTLER_EXPECT_RUNG=cgroup-v2 tests $(cat /t/filter) --skip daemon:: --skip ladder:: --skip a_guard_has_little_memory &&
    left $groups
}
suite topmost all

echo '+memory +pids +cpu' >$groups/cgroup.subtree_control
service() { mkdir $groups/service && OSTLER_EXPECT_RUNG=cgroup-v2 in_group service /t/it --test-threads=1 --show-output limits:: && left $groups/service; }
suite service service

# What systemd does for a user's `Delegate=yes`.
rootless() {
  mkdir $groups/user && chown 1000 $groups/user $groups/user/cgroup.procs $groups/user/cgroup.subtree_control || return
  OSTLER_EXPECT_RUNG=cgroup-v2 in_group user su user -s /bin/sh -c 'exec /t/it --test-threads=1 --show-output limits::' && left $groups/user
}
suite rootless rootless

# Somebody else lives there as well: no controllers, but killing.
crowded() {
  mkdir $groups/crowd && in_group crowd sh -c 'sleep 3600 & OSTLER_EXPECT_RUNG=sampled /t/it --test-threads=1 --show-output limits::; status=$?; kill $!; exit $status' && left $groups/crowd
}
suite crowded crowded

mount -o remount,ro $groups
without() { OSTLER_EXPECT_RUNG=sampled tests limits::; }
suite read-only without

echo VM-DONE
poweroff -f
INIT
chmod +x "$root/init"
( cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null ) | gzip -1 >"$work/initrd"

say "booting $(basename "$vmlinuz")"
: >"$work/console"
timeout -k 10 "$VM_LIMIT_S" qemu-system-x86_64 -accel tcg -cpu max -smp "$VM_CPUS" -m "$VM_MEMORY_MIB" \
  -nodefaults -no-reboot -display none -nic none -serial "file:$work/console" -kernel "$vmlinuz" -initrd "$work/initrd" \
  -append 'console=ttyS0 quiet panic=-1 psi=1' </dev/null >&2 &
vm=$!
tail -n +1 -s 0.5 -f --pid="$vm" "$work/console" | sed -u 's/\r$//' >&2 || true
status=0
wait "$vm" || status=$?
vm=
[ "$status" -eq 0 ] || say "the machine ended with status $status after its limit of $VM_LIMIT_S s"

tr -d '\r' <"$work/console" >"$work/said"
count() { sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p" "$work/said" | awk '{ total += $1 } END { print total + 0 }'; }
passed=$(count passed) failed=$(count failed)
# A suite that did not begin, did not end, or ended badly without a test saying so has failed.
for name in topmost service rootless crowded read-only; do
  ended=$(sed -nE "s/^VM-END $name ([0-9]+)$/\1/p" "$work/said")
  say "$(printf '%-10s %s' "$name" "$([ "$ended" = 0 ] && echo passed || echo "FAILED (${ended:-did not end})")")"
  [ "$ended" = 0 ] || failed=$((failed + 1))
done
grep -q '^VM-DONE$' "$work/said" || failed=$((failed + 1))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
