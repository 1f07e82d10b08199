//! Loads, attaches and detaches the eBPF programs; the only module that names aya.
//!
//! aya owns the maps and the tracepoint programs. What it cannot do yet (multi and session links, links to events of
//! tracefs) is in `raw`. Invariant: a probe stands only while its [`Tracer`] lives; the kernel takes every one down if the
//! process dies in any way. Of events their definitions are left then, which the next start removes.

mod cost;
mod counters;
mod error;
mod events;
mod groups;
mod kernel;
mod links;
mod object;
mod raw;
mod recorders;
mod ring;
mod rules;
mod tracer;

pub use cost::hit_cost;
pub use counters::LiveCounters;
pub use error::BpfError;
pub use groups::Grouping;
pub use kernel::{KernelFacts, OLDEST, release};
pub use links::LinkKind;
pub use object::object_checksum;
pub use recorders::{Recorder, is_any_recorder, recorder};
pub use ring::RingReader;
pub use rules::{Executables, Rules};
pub use tracer::{ProgramLog, Settings, Target, Tracer, Work};
