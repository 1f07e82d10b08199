//! The version of a CPython image: from `Py_Version` (3.11+), otherwise from the text behind `Py_GetVersion`.

use std::fmt;

use super::flow::{Next, Value, explore};
use crate::{elf::Elf, units::VirtAddr};

/// How finished a release is; the values of `PY_RELEASE_LEVEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Layouts still change.
    Alpha,
    /// Layouts still change.
    Beta,
    /// Layouts are fixed.
    Candidate,
    /// A release.
    Final,
}

/// A CPython version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 3.
    pub major: u8,
    /// What decides layouts.
    pub minor: u8,
    /// Bug-fix release.
    pub micro: u8,
    /// Alpha to final.
    pub level: Level,
    /// Number within the level; 0 for releases.
    pub serial: u8,
}

impl Version {
    /// From `PY_VERSION_HEX`: <https://docs.python.org/3/c-api/apiabiversion.html>.
    pub fn from_hex(hex: u32) -> Option<Self> {
        let [last, micro, minor, major] = hex.to_le_bytes();
        let level = match last >> 4 {
            0xa => Level::Alpha,
            0xb => Level::Beta,
            0xc => Level::Candidate,
            0xf => Level::Final,
            _ => return None,
        };
        Some(Self {
            major,
            minor,
            micro,
            level,
            serial: last & 0xf,
        })
    }

    /// `PY_VERSION_HEX`.
    pub fn hex(self) -> u32 {
        let level = match self.level {
            Level::Alpha => 0xa0,
            Level::Beta => 0xb0,
            Level::Candidate => 0xc0,
            Level::Final => 0xf0,
        };
        u32::from_be_bytes([self.major, self.minor, self.micro, level | self.serial & 0xf])
    }

    /// From `PY_VERSION`, such as `3.10.13`, `3.9.0rc2` or `3.8.0a1+`.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix('+').unwrap_or(text);
        let mut parts = text.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let rest = parts.next()?;
        let digits = rest
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let (micro, suffix) = rest.split_at_checked(digits)?;
        let levels = [("rc", Level::Candidate), ("a", Level::Alpha), ("b", Level::Beta)];
        let (level, serial) = if suffix.is_empty() {
            (Level::Final, 0)
        } else {
            levels
                .iter()
                .find_map(|(name, level)| Some((*level, suffix.strip_prefix(name)?.parse().ok()?)))?
        };
        Some(Self {
            major,
            minor,
            micro: micro.parse().ok()?,
            level,
            serial,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)?;
        match self.level {
            Level::Alpha => write!(f, "a{}", self.serial),
            Level::Beta => write!(f, "b{}", self.serial),
            Level::Candidate => write!(f, "rc{}", self.serial),
            Level::Final => Ok(()),
        }
    }
}

/// The version that the image says it is.
pub(super) fn find(elf: &Elf<'_>) -> Option<Version> {
    if let Some(symbol) = elf.exported("Py_Version") {
        return Version::from_hex(u32::try_from(elf.word(symbol.address)?).ok()?);
    }
    // 3.10 and older: Py_GetVersion formats PY_VERSION, a string literal, into a static buffer.
    let mut found = None;
    explore(elf, elf.exported("Py_GetVersion")?.address, 200, &mut |step| {
        if let Value::Number(address) = step.result {
            found = elf.text(VirtAddr(address), 32).and_then(Version::from_text);
        }
        if found.is_some() { Next::Stop } else { Next::Go }
    });
    found
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, hex: u32) {
        let version = Version::from_text(text).unwrap();
        assert_eq!(version.hex(), hex);
        assert_eq!(Version::from_hex(hex), Some(version));
        assert_eq!(version.to_string(), text.trim_end_matches('+'));
    }

    #[test]
    fn text_and_hex_agree() {
        check("3.10.13", 0x030a_0df0);
        check("3.9.0rc2", 0x0309_00c2);
        check("3.8.0a1+", 0x0308_00a1);
        check("3.15.2", 0x030f_02f0);
    }

    #[test]
    fn other_texts_are_no_versions() {
        for text in [
            "",
            "3",
            "3.x.1",
            "3.10",
            "3.10.1x",
            "3.10.",
            "%.80s (%.80s) %.80s",
            "300.1.1",
        ] {
            assert_eq!(Version::from_text(text), None, "{text}");
        }
    }
}
