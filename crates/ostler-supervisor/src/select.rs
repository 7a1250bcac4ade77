//! `select!` as this crate uses it.

/// [`tokio::select!`]: of several that are ready, one at random.
#[cfg(not(feature = "sim"))]
macro_rules! select {
    ($($branches:tt)*) => { ::tokio::select! { $($branches)* } };
}

/// [`tokio::select!`] in the order written: tokio's own dice cannot be seeded, and a simulated life must be the
/// same each time.
#[cfg(feature = "sim")]
macro_rules! select {
    ($($branches:tt)*) => { ::tokio::select! { biased; $($branches)* } };
}

pub(crate) use select;
