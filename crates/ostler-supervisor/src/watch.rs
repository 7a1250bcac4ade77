//! The latest value of something, for any number of readers: [`tokio::sync::watch`], as this crate uses it.
//!
//! Tokio wakes the readers in an order that it rolls dice for, which cannot be seeded. With the feature `sim` they are
//! woken in the order in which they began to wait, so that a simulated life is the same each time.

#[cfg(not(feature = "sim"))]
pub use tokio::sync::watch::{Receiver, Sender, channel};

#[cfg(feature = "sim")]
pub use ordered::{Receiver, Sender, channel};

/// Each item is tokio's of the same name.
#[cfg(feature = "sim")]
mod ordered {
    #![allow(missing_docs, clippy::missing_errors_doc, reason = "tokio documents its own")]

    use std::ops::Deref;
    use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

    use tokio::sync::Notify;

    #[derive(Debug)]
    struct Shared<T> {
        state: RwLock<State<T>>,
        changed: Notify,
    }

    #[derive(Debug)]
    struct State<T> {
        value: T,
        version: u64,
        closed: bool,
    }

    impl<T> Shared<T> {
        fn read(&self) -> RwLockReadGuard<'_, State<T>> {
            self.state.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// Wakes the readers when `change` says that there was one.
        fn change(&self, change: impl FnOnce(&mut State<T>) -> bool) -> bool {
            let changed = change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
            if changed {
                self.changed.notify_waiters();
            }
            changed
        }
    }

    #[derive(Debug)]
    pub struct Sender<T>(Arc<Shared<T>>);

    #[derive(Debug)]
    pub struct Receiver<T> {
        shared: Arc<Shared<T>>,
        seen: u64,
    }

    /// The sender is gone.
    #[derive(Debug)]
    pub struct RecvError;

    pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

    impl<T> Deref for Ref<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0.value
        }
    }

    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    impl<T: Default> Default for Sender<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> Sender<T> {
        pub fn new(value: T) -> Self {
            let state = State { value, version: 0, closed: false };
            Self(Arc::new(Shared { state: RwLock::new(state), changed: Notify::new() }))
        }

        pub fn subscribe(&self) -> Receiver<T> {
            Receiver { shared: Arc::clone(&self.0), seen: self.0.read().version }
        }

        pub fn borrow(&self) -> Ref<'_, T> {
            Ref(self.0.read())
        }

        pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
            self.0.change(|state| {
                let modified = modify(&mut state.value);
                state.version += u64::from(modified);
                modified
            })
        }

        pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
            self.send_if_modified(|value| {
                modify(value);
                true
            });
        }

        pub fn send_replace(&self, mut value: T) -> T {
            self.send_modify(|old| std::mem::swap(old, &mut value));
            value
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.change(|state| {
                state.closed = true;
                true
            });
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self { shared: Arc::clone(&self.shared), seen: self.seen }
        }
    }

    impl<T> Receiver<T> {
        pub fn borrow(&self) -> Ref<'_, T> {
            Ref(self.shared.read())
        }

        pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
            let state = self.shared.read();
            self.seen = state.version;
            Ref(state)
        }

        pub async fn changed(&mut self) -> Result<(), RecvError> {
            loop {
                let mut changed = std::pin::pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                {
                    let state = self.shared.read();
                    if state.version != self.seen {
                        self.seen = state.version;
                        return Ok(());
                    }
                    if state.closed {
                        return Err(RecvError);
                    }
                }
                changed.await;
            }
        }

        pub async fn wait_for(
            &mut self,
            mut wanted: impl FnMut(&T) -> bool,
        ) -> Result<Ref<'_, T>, RecvError> {
            loop {
                let found = wanted(&self.borrow_and_update());
                if found {
                    return Ok(self.borrow());
                }
                self.changed().await?;
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[tokio::test]
        async fn readers_are_woken_in_the_order_in_which_they_wait() {
            let (sender, receiver) = channel(0);
            let (order, mut heard) = tokio::sync::mpsc::channel(64);
            for number in 0..64 {
                let (mut receiver, order) = (receiver.clone(), order.clone());
                tokio::spawn(async move {
                    receiver.changed().await.expect("it is not gone");
                    let value = *receiver.borrow();
                    order.send((number, value)).await.expect("it listens");
                });
            }
            tokio::task::yield_now().await;
            assert_eq!(sender.send_replace(7), 0);
            for number in 0..64 {
                assert_eq!(heard.recv().await, Some((number, 7)));
            }
            let mut late = receiver.clone();
            assert!(late.changed().await.is_ok(), "it has not seen the change");
            assert!(!sender.send_if_modified(|_| false));
            assert_eq!(*late.wait_for(|value| *value == 7).await.expect("it is so"), 7);
            drop(sender);
            assert!(late.changed().await.is_err());
            assert!(late.wait_for(|value| *value == 8).await.is_err());
        }
    }
}
