//! The contract between the eBPF programs and userspace: records, layouts, sites, reasons, limits.
//!
//! Everything here is plain `#[repr(C)]` data with explicit padding, so that one set of bytes means the
//! same on both sides and in a capture file. No dependency, no logic beyond constructors of bit fields.
//! A change of any size or meaning is a new capture format: raise [`ABI_VERSION`].
#![no_std]

pub mod config;
pub mod kfunc;
pub mod layout;
pub mod limits;
pub mod process;
pub mod reason;
pub mod record;
pub mod site;

/// Version of everything in this crate; written into captures and compared when one is read.
pub const ABI_VERSION: u32 = 5;
