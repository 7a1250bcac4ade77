//! System calls that code in a sandbox does not get: ways to what namespaces do not part, and parts of the kernel that have no use
//! there and a history of faults.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Refused with `EPERM`.
const REFUSED: &[i64] = &[
    // Keys: the session's are inherited, whatever the namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Namespaces and mounts: with new ones, a process has all capabilities in them.
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_chroot,
    // Of the kernel itself, or of the whole machine.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// Refused with `ENOSYS`, as by an older kernel: libraries then take another way. What `clone3` is asked for cannot be seen by a
/// filter; what is done by io_uring is seen by none.
const UNKNOWN: &[i64] =
    &[libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Families of sockets that there are; others get `EAFNOSUPPORT`. `AF_VSOCK`, the way from a virtual machine to its host, knows no
/// network namespace.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Error = seccompiler::BackendError;

/// The programs that refuse them, to be applied all. One has one answer, so they are several.
pub(super) fn programs() -> Result<Vec<BpfProgram>, Error> {
    let mut refused: Rules = REFUSED.iter().map(|&number| (number, Vec::new())).collect();
    for number in [libc::SYS_clone, libc::SYS_unshare] {
        refused.insert(number, vec![new_user()?]);
    }
    let unknown = UNKNOWN.iter().map(|&number| (number, Vec::new())).collect();
    let mut families = Rules::new();
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        families.insert(number, vec![other_family()?]);
    }
    [(refused, libc::EPERM), (unknown, libc::ENOSYS), (families, libc::EAFNOSUPPORT)]
        .into_iter()
        .map(|(rules, errno)| program(rules, errno))
        .collect()
}

/// A new user namespace is asked for.
fn new_user() -> Result<SeccompRule, Error> {
    let flag = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let asked = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
    SeccompRule::new(vec![asked])
}

fn other_family() -> Result<SeccompRule, Error> {
    let not = |family: libc::c_int| {
        let family = u64::from(family.cast_unsigned());
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(FAMILIES.into_iter().map(not).collect::<Result<_, _>>()?)
}

fn program(mut rules: Rules, errno: libc::c_int) -> Result<BpfProgram, Error> {
    if cfg!(target_arch = "x86_64") {
        /// What numbers of the x32 way of calling the same have beside them (`__X32_SYSCALL_BIT`).
        const X32: i64 = 0x4000_0000;
        let twins: Vec<_> = rules.iter().map(|(number, rules)| (number | X32, rules.clone())).collect();
        rules.extend(twins);
    }
    // Calls by the numbers of another architecture end the process: that is seccompiler's own first rule.
    let refused = SeccompAction::Errno(errno.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_made_for_this_machine() {
        let programs = programs().expect("made");
        assert_eq!(programs.len(), 3);
        // The kernel takes 4096 instructions at most.
        assert!(programs.iter().all(|program| (4..4096).contains(&program.len())));
    }
}
