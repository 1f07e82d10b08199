//! Newtypes for numbers that have a unit or live in an address space, so that they cannot be mixed up.
//!
//! The constructor names the space. None of them does arithmetic that can overflow silently.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

newtype!(
    /// Process id (thread group id) in the initial pid namespace. Never a key on its own: see `profile::ProcessKey`.
    Pid(u32), "{}"
);
newtype!(
    /// Thread id in the initial pid namespace.
    Tid(u32), "{}"
);
newtype!(
    /// Link-time address in an ELF image.
    VirtAddr(u64), "{:#x}"
);
newtype!(
    /// Offset in a file, bytes.
    FileOffset(u64), "{:#x}"
);
newtype!(
    /// Address in a running process.
    ProcAddr(u64), "{:#x}"
);
newtype!(
    /// A number of bytes.
    ByteCount(u64), "{}"
);
newtype!(
    /// Nanoseconds of the monotonic clock (since boot, without suspend).
    MonotonicNs(u64), "{}"
);
newtype!(
    /// Nanoseconds since boot, as a process's start time is given.
    BootNs(u64), "{}"
);
newtype!(
    /// Id of a stack, unique within its process; see `tracer_ebpf::record::stack_id` for the values that are no hashes.
    StackId(u64), "{:#018x}"
);
newtype!(
    /// Index of an image in the order in which the images of a recording were attached.
    ImageId(u32), "{}"
);

impl VirtAddr {
    /// The address `by` bytes further on, if there is one.
    pub fn checked_add(self, by: u64) -> Option<Self> {
        self.0.checked_add(by).map(Self)
    }
}
