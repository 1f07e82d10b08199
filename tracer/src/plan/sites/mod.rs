//! The site finder: from the allocator's functions to every copy of them that the compiler made.

mod body;
mod code;
mod registers;
mod search;
