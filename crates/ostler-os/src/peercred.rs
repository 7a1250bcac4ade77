//! Who is at the other end of a unix socket.

use std::io;
use std::os::fd::AsFd;

/// The process that connected, as it was when it did (`SO_PEERCRED`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerCredentials {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its pid then: to be shown, not to be trusted, for it may have ended since.
    pub pid: i32,
}

impl PeerCredentials {
    /// Whether the peer may manage this process: the same user, or root.
    pub fn is_owner(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// The credentials of the peer of a connected unix socket.
///
/// # Errors
/// When it is no unix socket, or not connected.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(PeerCredentials {
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
        pid: peer.pid.as_raw_nonzero().get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let peer = peer_credentials(&one).expect("credentials");
        assert_eq!(peer.pid, std::process::id().cast_signed());
        assert!(peer.is_owner());
    }

    #[test]
    fn a_file_has_no_peer() {
        let file = std::fs::File::open("/dev/null").expect("opens");
        peer_credentials(&file).expect_err("no socket");
    }
}
