//! Names of users, from /etc/passwd, read once.
//!
//! Only the local file: name services would have to be asked over the network. A process in a container may
//! know its user by another name; what is shown is the host's.

use std::{collections::HashMap, path::Path};

use super::process::read_bounded;

/// Most bytes read.
const MAX_FILE: u64 = 4 << 20;

/// Names by user id.
#[derive(Clone, Debug, Default)]
pub struct UserNames(HashMap<u32, String>);

impl UserNames {
    /// As this host has them now; none if they cannot be read.
    pub fn of_host() -> Self {
        Self::parse(&read_bounded(Path::new("/etc/passwd"), MAX_FILE).unwrap_or_default())
    }

    /// The name of a user, if it has one.
    pub fn get(&self, uid: u32) -> Option<&str> {
        self.0.get(&uid).map(String::as_str)
    }

    /// The id of the user of that name; the lowest, should there be two.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        let named = self.0.iter().filter(|(_, known)| *known == name);
        named.map(|(&uid, _)| uid).min()
    }

    /// `NAME:PASSWORD:UID:...` lines; of two with one id the first counts, as for `getpwuid`.
    fn parse(text: &[u8]) -> Self {
        let mut names = HashMap::new();
        for line in String::from_utf8_lossy(text).lines() {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(uid))) = (fields.next(), fields.nth(1).map(str::parse)) {
                names.entry(uid).or_insert_with(|| name.to_owned());
            }
        }
        Self(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_id_and_damaged_lines_left_out() {
        let names =
            UserNames::parse(b"root:x:0:0::/:/bin/sh\ntoor:x:0:0\n\nbad\nx:y:z\nann:x:1000\n\xff:x:7:\n");
        assert_eq!(names.get(0), Some("root"));
        assert_eq!(names.get(1000), Some("ann"));
        assert_eq!(names.get(7), Some("\u{fffd}"));
        assert_eq!(names.get(1), None);
        assert_eq!(names.id_of("ann"), Some(1000));
        assert_eq!(names.id_of("bob"), None);
    }
}
