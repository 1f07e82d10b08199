//! Code object and instruction to function, file and line.
