//! Ring or capture bytes to events: total decoder, no panic on any input.

pub mod event;
