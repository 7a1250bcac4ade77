//! The pipes of a worker, from the instance that runs it to the task that speaks with it.

use std::sync::{Mutex, PoisonError};

use crate::launch::{Input, Output};
use crate::watch;

/// What the protocol of workers runs over, for one process.
#[derive(Debug)]
pub(crate) struct Link {
    pipes: Mutex<Option<(Input, Output)>>,
    /// What its first word was, once it was heard.
    ready: watch::Sender<Option<Result<(), String>>>,
}

impl Link {
    pub(crate) fn new(stdin: Input, stdout: Output) -> Self {
        Self { pipes: Mutex::new(Some((stdin, stdout))), ready: watch::Sender::new(None) }
    }

    /// Its pipes, for the first who asks.
    pub(super) fn take(&self) -> Option<(Input, Output)> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The worker has said that it is there, or something that is not that.
    pub(super) fn answered(&self, ready: Result<(), String>) {
        self.ready.send_replace(Some(ready));
    }

    /// Waits until it has.
    ///
    /// # Errors
    /// What was wrong with what it said.
    pub(crate) async fn until_ready(&self) -> Result<(), String> {
        let mut ready = self.ready.subscribe();
        match ready.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or(Ok(())),
            // The sender lives as long as `self`.
            Err(_) => Err("it was given up".to_owned()),
        }
    }
}
