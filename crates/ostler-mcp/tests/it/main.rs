//! The envelope reader, as its users see it.

mod envelope_random;
mod envelope_table;
