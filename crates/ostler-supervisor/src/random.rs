//! Random bits from the operating system.

/// 128 of them: enough for a secret that is never guessed.
///
/// # Panics
/// When the operating system has no randomness to give, which Linux does not do after boot.
pub fn bits128() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u128::from_ne_bytes(bytes)
}

/// 64 of them, for jitter.
pub fn bits64() -> u64 {
    // The low half is as random as the whole.
    (bits128() & u128::from(u64::MAX)) as u64
}
