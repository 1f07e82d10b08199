//! Little-endian fields of the ABI's records, by the names they have there.
//!
//! Apart from the decoder so that offsets come from the ABI's own types and nowhere else. Safe code: the
//! offsets are constants, so the bounds checks vanish when a record's fixed part is an array.

/// A number as it stands in a record.
pub(super) trait Number: Sized {
    /// The number at `at`; 0 past the end, which a caller excludes by the length of `bytes`.
    fn read(bytes: &[u8], at: usize) -> Self;
    /// Puts the number at `at`; nothing past the end.
    fn write(self, bytes: &mut [u8], at: usize);
}

macro_rules! number {
    ($($type:ty),*) => { $(
        impl Number for $type {
            #[inline(always)]
            fn read(bytes: &[u8], at: usize) -> Self {
                match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
                    Some(chunk) => Self::from_le_bytes(*chunk),
                    None => 0,
                }
            }

            #[inline]
            fn write(self, bytes: &mut [u8], at: usize) {
                if let Some(chunk) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                    *chunk = self.to_le_bytes();
                }
            }
        }
    )* };
}
number!(u8, u16, u32, i32, u64);

/// `get!(bytes, Type.field)`: the number in that field.
macro_rules! get {
    ($bytes:expr, $record:ty, $($field:ident).+) => {
        $crate::ingest::field::Number::read($bytes, core::mem::offset_of!($record, $($field).+))
    };
}

/// `put!(bytes, Type, field, value)`: the inverse of [`get`].
macro_rules! put {
    ($bytes:expr, $record:ty, $($field:ident).+, $value:expr) => {
        $crate::ingest::field::Number::write($value, $bytes, core::mem::offset_of!($record, $($field).+))
    };
}

pub(super) use {get, put};
