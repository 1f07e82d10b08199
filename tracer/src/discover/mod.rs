//! Which processes run Python, and which image each maps. With symbolize, the only reader of /proc.
//!
//! Everything read here belongs to the targets and is hostile: names hold any bytes, files are swapped while
//! they are looked at, processes vanish between two reads. Reads are bounded; a process that cannot be read
//! is skipped or is an error of its own, never one of the scan.

mod bias;
mod cgroup;
pub mod classify;
pub mod command;
mod cpu_time;
mod hierarchy;
mod identity;
mod incarnation;
mod library;
mod map_holders;
mod maps;
mod memory;
mod open;
mod pagemap;
mod process;
mod regions;
mod select;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod user;
mod watch;
mod well_known;

pub use bias::{LoadSegment, bias};
pub use cgroup::container_id;
pub use classify::Classifier;
pub use command::{CommandError, Resolved, resolve_command};
pub use cpu_time::{cpu_time, own_time};
pub use hierarchy::ControlGroup;
pub use identity::{FileIdentity, ImageKey};
pub use incarnation::Incarnation;
pub use library::{Search, libpython_of};
pub use map_holders::{MapHolder, map_holders};
pub use maps::{MappedFile, Range, mapped_files};
pub use memory::{MAX_READ, read_each, read_memory};
pub use open::{OpenedFile, Via, open_mapped};
pub use pagemap::{PageMap, PageState};
pub use process::{Executable, ProcessInfo, environment_variable, executable, process, processes};
pub use regions::anonymous_regions;
pub use select::{ExecutablePattern, SelectError, Selection, User, Words};
pub use user::UserNames;
pub use watch::{MapEvent, MapWatcher, Mapping, WatchError};
pub use well_known::well_known_images;
