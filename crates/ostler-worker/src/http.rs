//! `http-request`: one request, the redirects it is sent on to, one answer.
//!
//! Each request has a connection of its own, to an address that [`policy`] let pass after the name was looked up: so
//! what is checked is what is connected to, whatever a name server says the next time, and after a redirect again.

mod connect;
mod exchange;
mod policy;
mod spec;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::runtime::{Builder, Runtime};

use crate::job::{Job, Outcome, Stop, error, payload};
use crate::protocol::{ErrorKind, Task};
use crate::wire::Wire;
use connect::Trust;
use spec::Spec;

/// What requests are made with; nothing until there is one.
#[derive(Default)]
pub(crate) struct Http {
    runtime: Option<Runtime>,
    trust: Trust,
}

impl Http {
    pub(crate) fn request(&mut self, job: &Rc<Job>, task: &Task) -> Outcome {
        let spec = Spec::of(payload(task)?, job)?;
        if !job.allow.network {
            let why = "the network is not allowed to this task; its project has to allow it";
            return Err(error(ErrorKind::Refused, why));
        }
        if self.runtime.is_none() {
            let made = Builder::new_current_thread().enable_all().build();
            let failed = |why: io::Error| {
                error(ErrorKind::Failed, &format!("the network cannot be used in this worker: {why}"))
            };
            self.runtime = Some(made.map_err(failed)?);
        }
        let Some(runtime) = &self.runtime else {
            return Err(error(ErrorKind::Failed, "the network cannot be used in this worker"));
        };
        let trust = &self.trust;
        let time = spec.time;
        runtime.block_on(async {
            let exchange = exchange::follow(job, &spec, trust);
            tokio::select! {
                biased;
                stop = stopped(job) => Err(job.stopped(stop)),
                outcome = exchange => outcome,
                () = until(time) => {
                    let ms = time.unwrap_or_default().as_millis();
                    Err(error(ErrorKind::Timeout, &format!("no whole answer in {ms} ms (`timeout_ms`)")))
                }
            }
        })
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // A name that is still being looked up is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn until(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Hears what comes, and says that the worker is alive, until the attempt is to stop.
async fn stopped(job: &Job) -> Stop {
    let mut input = Input::open();
    loop {
        if let Some(stop) = job.check() {
            return stop;
        }
        tokio::select! {
            () = input.readable() => {
                job.listen();
                // tokio believes that there is more until a read of its own finds nothing; another one knows nothing.
                input = Input::open();
            }
            () = tokio::time::sleep(job.quiet()) => {}
        }
    }
}

/// Standard input, to be waited on.
enum Input {
    Pipe(pipe::Receiver),
    Socket(UnixStream),
    /// A file, which cannot be waited on. Nothing comes from there either.
    Silent,
}

impl Input {
    fn open() -> Self {
        let copy = || Wire::input().try_clone_to_owned();
        if let Ok(pipe) = copy().and_then(pipe::Receiver::from_owned_fd) {
            return Self::Pipe(pipe);
        }
        let socket = copy().map(std::os::unix::net::UnixStream::from).and_then(|socket| {
            socket.local_addr()?;
            socket.set_nonblocking(true)?;
            UnixStream::from_std(socket)
        });
        socket.map_or(Self::Silent, Self::Socket)
    }

    /// Until something has come; it is read elsewhere.
    async fn readable(&self) {
        let heard = match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Socket(socket) => socket.readable().await,
            Self::Silent => std::future::pending().await,
        };
        if heard.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
