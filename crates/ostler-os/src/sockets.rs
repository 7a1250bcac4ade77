//! Which TCP ports a tree listens on: the inodes of listening sockets (`/proc/net/tcp`, `/proc/net/tcp6`, see
//! proc_pid_net(5)), matched with the descriptors of the tree's processes.
//!
//! What is seen is the daemon's network namespace, which is where its clients connect. A process of another user
//! cannot be looked into, so its sockets are nobody's that is known.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::meter::TreeRoot;
use crate::tree::{Process, Scan};

/// Descriptors looked at of one process.
const MAX_FDS: usize = 65_536;

/// Listening sockets looked at.
const MAX_LISTENING: usize = 65_536;

/// A socket that a tree listens on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Listener {
    /// Its port.
    pub port: u16,
    /// The address it is bound to; unspecified for all.
    pub addr: IpAddr,
    /// A process of the tree that holds it.
    pub pid: i32,
}

/// Who answers on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The tree: this process of it holds the socket, and nobody else listens where a local client could end up.
    Tree(i32),
    /// Somebody else, alone or as well; who, where that can be seen.
    Other(Option<i32>),
    /// Nobody listens.
    Nobody,
}

/// All listening sockets and all processes at one moment, for any number of questions.
#[derive(Debug)]
pub struct Sockets {
    scan: Scan,
    listening: Vec<Listening>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listening {
    inode: u64,
    port: u16,
    addr: IpAddr,
}

impl Listening {
    /// Whether somebody who connects to this port on this machine could end up here.
    fn is_local(&self) -> bool {
        let plain = self.addr.to_canonical();
        plain.is_loopback() || plain.is_unspecified()
    }
}

impl Sockets {
    /// Looks. Milliseconds; longer with very many connections. Blocks.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn take() -> io::Result<Self> {
        // The sockets first: a process that starts to listen in between is seen next time, instead of being taken for
        // nobody because it was not there yet.
        let mut listening = Vec::new();
        read_table("/proc/net/tcp", &mut listening)?;
        match read_table("/proc/net/tcp6", &mut listening) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { scan: Scan::take()?, listening })
    }

    /// What the tree listens on, each socket once, by port.
    pub fn listeners(&self, tree: TreeRoot) -> Vec<Listener> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for process in self.members(tree) {
            for_each_socket(process.pid, |inode| {
                let listening = self.listening.iter().find(|one| one.inode == inode);
                if let Some(&Listening { port, addr, .. }) = listening.filter(|_| seen.insert(inode)) {
                    found.push(Listener { port, addr, pid: process.pid });
                }
            });
        }
        found.sort_unstable_by_key(|listener| (listener.port, listener.addr));
        found
    }

    /// Who answers on this port of this machine. Unsure means not the tree: where somebody else listens beside it
    /// (`SO_REUSEPORT`, or another of the local addresses), a client may get either.
    pub fn owner_of(&self, port: u16, tree: TreeRoot) -> Owner {
        let on_port: Vec<Listening> = self.listening.iter().filter(|one| one.port == port).copied().collect();
        if on_port.is_empty() {
            return Owner::Nobody;
        }
        let mut own = Vec::new();
        let mut pid = None;
        for process in self.members(tree) {
            for_each_socket(process.pid, |inode| {
                if on_port.iter().any(|one| one.inode == inode) {
                    own.push(inode);
                    pid.get_or_insert(process.pid);
                }
            });
        }
        let mut others = on_port.iter().filter(|one| !own.contains(&one.inode));
        let thief = if pid.is_some() { others.find(|one| one.is_local()) } else { others.next() };
        match (pid, thief) {
            (Some(pid), None) => Owner::Tree(pid),
            (_, Some(thief)) => Owner::Other(self.holder(thief.inode)),
            (None, None) => Owner::Nobody,
        }
    }

    fn members(&self, tree: TreeRoot) -> Vec<Process> {
        let mut members = Vec::new();
        let guard = self.scan.get(tree.guard_pid);
        if guard.is_some_and(|guard| tree.guard_start == 0 || guard.start_time == tree.guard_start) {
            self.scan.descendants(tree.guard_pid, &mut members);
        }
        members
    }

    /// Any process that holds this socket.
    fn holder(&self, wanted: u64) -> Option<i32> {
        self.scan.processes().iter().map(|process| process.pid).find(|&pid| {
            let mut holds = false;
            for_each_socket(pid, |inode| holds |= inode == wanted);
            holds
        })
    }
}

/// [`Sockets::listeners`] of one tree.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn listeners(tree: TreeRoot) -> io::Result<Vec<Listener>> {
    Ok(Sockets::take()?.listeners(tree))
}

/// [`Sockets::owner_of`] for one port.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn owner_of(port: u16, tree: TreeRoot) -> io::Result<Owner> {
    Ok(Sockets::take()?.owner_of(port, tree))
}

/// The inodes of the sockets that a process has open; none when it cannot be looked into.
fn for_each_socket(pid: i32, mut tell: impl FnMut(u64)) {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    for entry in entries.take(MAX_FDS) {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let inode =
            target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.into_iter().for_each(&mut tell);
    }
}

fn read_table(path: &str, into: &mut Vec<Listening>) -> io::Result<()> {
    for line in BufReader::new(File::open(path)?).lines() {
        into.extend(parse(&line?));
        if into.len() >= MAX_LISTENING {
            tracing::warn!(limit = MAX_LISTENING, "more listening sockets than are looked at");
            return Ok(());
        }
    }
    Ok(())
}

/// One line of the table, if that socket listens.
fn parse(line: &str) -> Option<Listening> {
    /// TCP_LISTEN of net/tcp_states.h.
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (addr, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Listening { inode, port: u16::from_str_radix(port, 16).ok()?, addr: address(addr)? })
}

/// Addresses are written as 32-bit words in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The tree of which the test process is a part; its sockets are the tree's.
    fn tree_with_me() -> TreeRoot {
        TreeRoot { guard_pid: rustix::process::Pid::as_raw(rustix::process::getppid()), guard_start: 0 }
    }

    fn nobody() -> TreeRoot {
        TreeRoot { guard_pid: i32::MAX, guard_start: 0 }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_the_table_is_read() {
        let line = "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 48213 1 0 100";
        let addr = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(parse(line), Some(Listening { inode: 48_213, port: 8080, addr }));
        assert_eq!(parse(&line.replace(" 0A ", " 01 ")), None, "a connection");
        let six = line.replace("0100007F", "00000000000000000000000001000000");
        assert_eq!(parse(&six).map(|one| one.addr), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None, "the heading");
        for end in 0..line.len().min(90) {
            assert_eq!(parse(&line[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_listener_is_found_with_its_port_address_and_process() {
        let me = std::process::id().cast_signed();
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(socket) = TcpListener::bind(address) else {
                println!("skipped: cannot bind {address} here");
                continue;
            };
            let local = socket.local_addr().expect("bound");
            let wanted = Listener { port: local.port(), addr: local.ip(), pid: me };
            let sockets = Sockets::take().expect("/proc");
            assert!(sockets.listeners(tree_with_me()).contains(&wanted), "{address}");
            assert_eq!(sockets.owner_of(local.port(), tree_with_me()), Owner::Tree(me));
            assert_eq!(sockets.owner_of(local.port(), nobody()), Owner::Other(Some(me)));
            drop(socket);
            assert_eq!(owner_of(local.port(), tree_with_me()).expect("/proc"), Owner::Nobody);
        }
    }

    #[test]
    fn somebody_beside_the_tree_makes_it_not_the_trees() {
        let (own, thief) = (TcpListener::bind("127.0.0.1:0").expect("bound"), 1);
        let port = own.local_addr().expect("bound").port();
        let mut sockets = Sockets::take().expect("/proc");
        let me = std::process::id().cast_signed();
        assert_eq!(sockets.owner_of(port, tree_with_me()), Owner::Tree(me));
        let elsewhere = Listening { inode: thief, port, addr: Ipv4Addr::new(192, 0, 2, 1).into() };
        sockets.listening.push(elsewhere);
        assert_eq!(sockets.owner_of(port, tree_with_me()), Owner::Tree(me), "on another network");
        for addr in
            [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()]
        {
            sockets.listening.push(Listening { addr, ..elsewhere });
            assert_eq!(sockets.owner_of(port, tree_with_me()), Owner::Other(None), "{addr}");
            sockets.listening.pop();
        }
    }
}
