//! `down`: ask the daemon to drain and stop, and wait until its process is gone. Because every server's guard
//! dies with the daemon, and the daemon ends only after every tree is empty, that is when nothing is left.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ostler_api::{Client, ClientError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::{Instant, sleep};

use super::print;
use crate::exit::Failure;

/// Longest wait for the daemon's end: twice its own limit for a graceful shutdown, 30 s.
const GONE_LIMIT: Duration = Duration::from_secs(60);
/// How often the socket is tried where the process cannot be watched.
const SOCKET_POLL: Duration = Duration::from_millis(100);

pub(super) async fn down(client: &Client) -> Result<(), Failure> {
    // Watched from before the request, so that the process seen to end is the one that was asked.
    let peer = client.peer().await?;
    let watch = peer.pid.and_then(watch_process);
    client.shutdown().await?;
    let gone = match watch {
        Some(process) => process_gone(process).await,
        None => socket_gone(client).await?,
    };
    if gone {
        return print(b"the daemon has stopped; no process of any server is left\n");
    }
    Err(Failure::Outcome {
        error: format!("the daemon is still stopping after {} s", GONE_LIMIT.as_secs()),
        hint: Some("see what it waits for with `ostler ps` and `ostler events`".to_owned()),
    })
}

/// A descriptor that becomes readable when the process ends. `None` where the kernel has none, or the process
/// is in another process namespace.
fn watch_process(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Whether the process ended within the limit. Waits on a thread of its own, in the kernel.
async fn process_gone(process: OwnedFd) -> bool {
    let wait = tokio::task::spawn_blocking(move || {
        let limit = Timespec { tv_sec: i64::try_from(GONE_LIMIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))
    });
    matches!(wait.await, Ok(Ok(ready)) if ready > 0)
}

/// Whether the socket stopped taking connections within the limit.
async fn socket_gone(client: &Client) -> Result<bool, Failure> {
    let deadline = Instant::now() + GONE_LIMIT;
    while Instant::now() < deadline {
        match client.peer().await {
            Err(ClientError::NoDaemon { .. }) => return Ok(true),
            Err(error) => return Err(error.into()),
            Ok(_) => sleep(SOCKET_POLL).await,
        }
    }
    Ok(false)
}
