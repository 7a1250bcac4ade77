//! Chance that needs no dice: it follows from numbers that differ anyway, so whoever decides again decides alike.

/// Mixes the bits of a number (SplitMix64; Steele and others, 2014): neighbours come out far apart.
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The same as a share, from 0 to 1.
pub(crate) fn share(number: u64) -> f64 {
    let top = u32::try_from(mix(number) >> 32).unwrap_or(u32::MAX);
    f64::from(top) / f64::from(u32::MAX)
}
