//! The two modes of a recording: what is looked at. Every stage from the command line to the reports asks for it.

/// What is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Who holds the heap: acquisitions of pools, large blocks, page faults, and readings of the heap. Estimates.
    #[default]
    Heap,
    /// Every allocation and every free.
    Allocs,
}

impl Mode {
    /// The name that users type, and that captures and JSON have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Allocs => "allocs",
        }
    }
}
