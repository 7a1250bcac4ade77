//! What daemon and guard say to each other over the control socket (`SOCK_SEQPACKET`: one message, one packet).
//!
//! The first packet goes to the guard and carries four descriptors (`SCM_RIGHTS`): a memory file with the
//! [`Spec`], and the server's stdin, stdout and stderr. After it orders go down and reports come up. Descriptors
//! travel this way, not by inheritance, so none can slip into a process that another thread starts meanwhile;
//! the spec travels in a memory file, so its size never makes the daemon wait for a guard to read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::home::Plan;
use crate::limits::{LimitHit, Limits};
use crate::mark::Mark;

/// The longest spec, encoded. Arguments and environment together are limited to a quarter of the stack by
/// execve(2), 2 MiB as a rule; encoding takes up to four bytes for one.
pub(crate) const MAX_SPEC_BYTES: usize = 8 * 1024 * 1024;

/// The longest packet after the first. The longest texts in one are cut to fit (see [`MAX_TEXT_BYTES`]).
pub(crate) const MAX_PACKET_BYTES: usize = 16 * 1024;

/// The longest order, and the longest answer of a forge. A guard keeps the pages of its stack that it has used, so
/// it makes no room for more.
pub(crate) const MAX_ORDER_BYTES: usize = 128;

/// The longest text in a packet. JSON can take six bytes for one, so this fits whatever the text is.
pub(crate) const MAX_TEXT_BYTES: usize = 2 * 1024;

/// The most pids named in one report.
pub(crate) const MAX_PIDS: usize = 64;

/// How many descriptors come with the first packet.
pub(crate) const SPEC_FDS: usize = 4;

/// The command to start, complete: the guard adds nothing.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub(crate) struct Spec {
    /// A path, or a name to look up in the `PATH` of `env`.
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The guard's own, which is the daemon's, when absent.
    pub(crate) cwd: Option<OsString>,
    /// What the tree may use, and where its cgroups go.
    pub(crate) limits: Limits,
    pub(crate) plan: Plan,
}

/// What the daemon may ask of a guard.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// SIGTERM to the whole tree, SIGCONT after it so that a stopped process sees it.
    Terminate,
    /// SIGKILL to the whole tree, again and again until it is empty.
    Kill,
}

/// What a guard tells the daemon.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The leader runs its program.
    Started { pid: i32, start_time: u64 },
    /// It could not be started; `TreeEmpty` follows.
    SpawnFailed { errno: Option<i32>, message: String },
    /// The leader ended; others of its tree may live.
    LeaderExited { code: Option<i32>, signal: Option<i32> },
    /// The tree hit a limit. If the leader was killed for it, this comes before its end.
    LimitHit(LimitHit),
    /// Killing has gone on for a while and these are still there.
    Stuck { pids: Vec<i32> },
    /// The kernel says that no descendant is left. The last report.
    TreeEmpty,
}

/// What a forge answers.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forged {
    /// The guard that was made.
    Guard { pid: i32 },
    /// None could be made.
    Failed { errno: i32 },
}

/// A pair of connected control sockets, both close-on-exec.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends the first packet. Does not wait.
pub(crate) fn send_spec(socket: impl AsFd, spec: &Spec, stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    let encoded = serde_json::to_vec(spec)?;
    if encoded.len() > MAX_SPEC_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it takes {} bytes", encoded.len())));
    }
    let mut file = File::from(rustix::fs::memfd_create("ostler-spec", MemfdFlags::CLOEXEC)?);
    file.write_all(&encoded)?;
    file.rewind()?;
    // A packet of no bytes would look like end of file, so there is one.
    send_fds(socket, b"s", &[file.as_fd(), stdio[0], stdio[1], stdio[2]])
}

/// Asks a forge for a guard. Does not wait.
pub(crate) fn send_guard(socket: impl AsFd, mark: Mark, control: BorrowedFd<'_>) -> io::Result<()> {
    send_fds(socket, mark.to_string().as_bytes(), &[control])
}

fn send_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SPEC_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "the buffer is made for the most of them");
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Waits for the first packet; `None` when the daemon is gone.
pub(crate) fn recv_spec(socket: impl AsFd) -> io::Result<Option<(Spec, [OwnedFd; 3])>> {
    let mut byte = [0_u8; 1];
    let Some((_, fds)) = recv_fds(socket, &mut byte)? else { return Ok(None) };
    let [Some(file), Some(stdin), Some(stdout), Some(stderr)] = fds else {
        return Err(invalid("the first packet came without its descriptors"));
    };
    let file = File::from(file);
    // Its whole size at once: growing step by step leaves a guard with pages it does not need.
    let size = file.metadata()?.len().min(MAX_SPEC_BYTES as u64);
    let mut encoded = Vec::with_capacity(usize::try_from(size).unwrap_or(MAX_SPEC_BYTES) + 1);
    file.take(MAX_SPEC_BYTES as u64).read_to_end(&mut encoded)?;
    Ok(Some((serde_json::from_slice(&encoded)?, [stdin, stdout, stderr])))
}

/// Waits for the next wish for a guard; `None` when the daemon is gone.
pub(crate) fn recv_guard(socket: impl AsFd) -> io::Result<Option<(Mark, OwnedFd)>> {
    let mut bytes = [0_u8; MAX_ORDER_BYTES];
    let Some((length, [control, ..])) = recv_fds(socket, &mut bytes)? else { return Ok(None) };
    let mark = std::str::from_utf8(&bytes[..length]).ok().and_then(|text| text.parse().ok());
    match (mark, control) {
        (Some(mark), Some(control)) => Ok(Some((mark, control))),
        _ => Err(invalid("a wish for a guard came without its mark or its descriptor")),
    }
}

/// Waits for a packet with descriptors; `None` when the other side is gone.
fn recv_fds(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<(usize, [Option<OwnedFd>; SPEC_FDS])>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SPEC_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let into = &mut [IoSliceMut::new(&mut *bytes)];
        match rustix::net::recvmsg(&socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    Ok(Some((received.bytes, std::array::from_fn(|_| fds.next()))))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends one order or report without waiting.
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    let encoded = serde_json::to_vec(message)?;
    debug_assert!(encoded.len() <= MAX_PACKET_BYTES, "texts and lists in it are cut to fit");
    rustix::net::send(socket, &encoded, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One look at the socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<M> {
    /// A message.
    Message(M),
    /// Nothing there now.
    Nothing,
    /// The other side is gone, or has said its last.
    End,
}

/// Receives one message of at most `MOST` bytes without waiting.
pub(crate) fn recv<M: DeserializeOwned, const MOST: usize>(socket: impl AsFd) -> io::Result<Received<M>> {
    let mut packet = [0_u8; MOST];
    loop {
        match rustix::net::recv(&socket, &mut packet[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(Received::End),
            Ok((length, _)) => return Ok(Received::Message(serde_json::from_slice(&packet[..length])?)),
            // Said once, before what is still queued, when the other side ended without reading everything.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Cuts `text` so that it fits a packet.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_spec_arrives_whole_with_bytes_that_are_not_text() {
        let (daemon, guard) = socket_pair().expect("a pair");
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let odd = OsString::from_vec(vec![b'a', 0xff, 0xfe]);
        let spec = Spec {
            program: "server".into(),
            args: vec![odd.clone(), "x".repeat(300_000).into()],
            env: vec![("A".into(), odd)],
            cwd: Some("/tmp".into()),
            limits: Limits { memory: Some(1 << 40), cpu: Some(0.3), ..Limits::default() },
            plan: Plan { v2: Some(("/x".into(), vec!["pids".into()])), ..Plan::default() },
        };
        send_spec(&daemon, &spec, [read.as_fd(), write.as_fd(), write.as_fd()]).expect("sent");
        drop(write);
        let (got, [stdin, stdout, stderr]) = recv_spec(&guard).expect("received").expect("not the end");
        assert_eq!(got, spec);
        rustix::io::write(&stdout, b"1").expect("stdout is the write end");
        rustix::io::write(&stderr, b"2").expect("so is stderr");
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(&stdin, &mut bytes).expect("stdin is the read end"), 2);
    }

    #[test]
    fn a_spec_beyond_the_limit_is_refused() {
        let (daemon, _guard) = socket_pair().expect("a pair");
        let args = vec!["x".repeat(MAX_SPEC_BYTES).into()];
        let (limits, plan) = (Limits::default(), Plan::default());
        let spec = Spec { program: "p".into(), args, env: Vec::new(), cwd: None, limits, plan };
        let fd = daemon.as_fd();
        let error = send_spec(&daemon, &spec, [fd, fd, fd]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_daemon_that_ended_before_the_spec_is_the_end() {
        let (daemon, guard) = socket_pair().expect("a pair");
        drop(daemon);
        assert!(recv_spec(&guard).expect("no error").is_none());
    }

    #[test]
    fn reports_queued_before_a_reset_are_not_lost() {
        let (daemon, guard) = socket_pair().expect("a pair");
        send(&daemon, &Order::Kill).expect("sent, never read");
        send(&guard, &Report::TreeEmpty).expect("sent");
        drop(guard);
        assert_eq!(
            recv::<Report, MAX_PACKET_BYTES>(&daemon).expect("no error"),
            Received::Message(Report::TreeEmpty)
        );
        assert_eq!(recv::<Report, MAX_PACKET_BYTES>(&daemon).expect("no error"), Received::End);
    }

    #[test]
    fn the_longest_report_fits_a_packet() {
        let text = cut("\u{1}".repeat(MAX_TEXT_BYTES * 2));
        let failed = Report::SpawnFailed { errno: Some(i32::MIN), message: text };
        assert!(serde_json::to_vec(&failed).expect("encodes").len() <= MAX_PACKET_BYTES);
        let stuck = Report::Stuck { pids: vec![i32::MIN; MAX_PIDS] };
        assert!(serde_json::to_vec(&stuck).expect("encodes").len() <= MAX_PACKET_BYTES);
    }

    #[test]
    fn orders_and_answers_of_a_forge_fit_their_small_packets() {
        let fits = |encoded: serde_json::Result<Vec<u8>>| encoded.expect("encodes").len() <= MAX_ORDER_BYTES;
        assert!(fits(serde_json::to_vec(&Order::Terminate)) && fits(serde_json::to_vec(&Order::Kill)));
        assert!(fits(serde_json::to_vec(&Forged::Guard { pid: i32::MIN })));
        assert!(fits(serde_json::to_vec(&Forged::Failed { errno: i32::MIN })));
        assert!(Mark::random().to_string().len() <= MAX_ORDER_BYTES);
    }

    #[test]
    fn a_wish_for_a_guard_arrives_with_its_mark_and_its_socket() {
        let (daemon, forge) = socket_pair().expect("a pair");
        let (ours, theirs) = socket_pair().expect("a pair");
        let mark = Mark::random();
        send_guard(&daemon, mark, theirs.as_fd()).expect("sent");
        drop(theirs);
        let (got, control) = recv_guard(&forge).expect("received").expect("not the end");
        assert_eq!(got, mark);
        send(&ours, &Order::Kill).expect("sent");
        assert_eq!(
            recv::<Order, MAX_ORDER_BYTES>(&control).expect("received"),
            Received::Message(Order::Kill)
        );
        drop(daemon);
        assert!(recv_guard(&forge).expect("no error").is_none());
    }
}
