//! Random bits from the operating system.

use ostler_os::Mark;

#[cfg(feature = "sim")]
use simulated::fill;

/// For simulations: a thread may have a seeded source of its own.
#[cfg(feature = "sim")]
pub mod simulated {
    use std::cell::Cell;

    thread_local! {
        static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// What this thread gets from here on follows from `seed`; until [`end`].
    pub fn begin(seed: u64) {
        STATE.set(Some(seed));
    }

    /// This thread gets the operating system's random bits again.
    pub fn end() {
        STATE.set(None);
    }

    pub(super) fn fill(bytes: &mut [u8; 16]) {
        let Some(mut state) = STATE.get() else { return super::from_system(bytes) };
        for half in bytes.chunks_mut(8) {
            // splitmix64 (Steele, Lea, Flood 2014).
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            half.copy_from_slice(&(mixed ^ (mixed >> 31)).to_ne_bytes());
        }
        STATE.set(Some(state));
    }
}

fn from_system(bytes: &mut [u8; 16]) {
    getrandom::fill(bytes).expect("the operating system gives random bytes");
}

#[cfg(not(feature = "sim"))]
use from_system as fill;

/// 128 of them: enough for a secret that is never guessed.
///
/// # Panics
/// When the operating system has no randomness to give, which Linux does not do after boot.
pub fn bits128() -> u128 {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    u128::from_ne_bytes(bytes)
}

/// 64 of them, for jitter.
pub fn bits64() -> u64 {
    // The low half is as random as the whole.
    (bits128() & u128::from(u64::MAX)) as u64
}

/// A mark no other tree has.
pub fn mark() -> Mark {
    Mark::from(bits128())
}
