//! Names of entries: normalised, inside the root, and told apart from whiteouts.

use super::error::LayerError;
use super::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX};

/// A path below the image's root: no empty component, no `.`, no `..`, no NUL, every component short enough.
/// The empty path is the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    pub fn root() -> Self {
        Self::default()
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components joined by `/`, without one in front.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|component| !component.is_empty())
    }

    /// The last component and the path above it; `None` for the root.
    pub fn split_last(&self) -> Option<(LayerPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => {
                let (parent, rest) = self.0.split_at_checked(slash)?;
                Some((LayerPath(parent.to_vec()), rest.get(1..)?))
            }
            None => Some((Self::root(), &self.0)),
        }
    }

    /// The name of an entry. `./x` is `x`; `/` alone is the root (some builders write it so); any other absolute name and a
    /// name that climbs above the root are refused.
    pub fn of_entry(name: &[u8]) -> Result<Self, LayerError> {
        if name.first() == Some(&b'/') && name.iter().any(|byte| *byte != b'/') {
            return Err(LayerError::AbsoluteName { entry: display_name(name) });
        }
        normalise(name)?.ok_or_else(|| LayerError::Escapes { entry: display_name(name) })
    }

    /// The target of a hard link, which counts from the root whether or not it begins with a slash.
    pub fn of_link_target(entry: &[u8], target: &[u8]) -> Result<Self, LayerError> {
        normalise(target)?
            .ok_or_else(|| LayerError::LinkEscapes { entry: display_name(entry), target: display_name(target) })
    }

    /// As [`of_entry`](Self::of_entry), for names that are known to be good, in tests and tools.
    pub fn join(&self, component: &[u8]) -> Result<Self, LayerError> {
        let mut path = self.0.clone();
        path.push(b'/');
        path.extend_from_slice(component);
        normalise(&path)?.ok_or_else(|| LayerError::Escapes { entry: display_name(&path) })
    }
}

/// What a normalised name means in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Plain(LayerPath),
    Whiteout(LayerPath),
    Opaque(LayerPath),
}

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// Tells whiteouts from other names. Other names that begin with `.wh..wh.` are the bookkeeping of AUFS in very old images;
/// they stay plain here, because hard links point to them, and whoever builds a tree drops them at its end.
pub fn meaning(path: LayerPath) -> Result<Meaning, LayerError> {
    let Some((parent, name)) = path.split_last() else { return Ok(Meaning::Plain(path)) };
    let bookkeeping = path.0.starts_with(b".wh..wh.");
    if !bookkeeping && parent.components().any(|component| component.starts_with(WHITEOUT_PREFIX)) {
        return Err(LayerError::BadName { entry: display_name(&path.0), reason: "it lies below a whiteout" });
    }
    if name == OPAQUE_MARKER {
        return Ok(Meaning::Opaque(parent));
    }
    if bookkeeping || name.starts_with(b".wh..wh.") {
        return Ok(Meaning::Plain(path));
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Meaning::Plain(path)),
        Some(b"" | b"." | b"..") => {
            Err(LayerError::BadName { entry: display_name(&path.0), reason: "a whiteout of nothing" })
        }
        Some(hidden) => Ok(Meaning::Whiteout(parent.join(hidden)?)),
    }
}

/// Resolves `.` and `..` by their letters alone; `None` when the name climbs above the root.
fn normalise(name: &[u8]) -> Result<Option<LayerPath>, LayerError> {
    if name.len() > PATH_BYTES_MAX {
        return Err(LayerError::TooLarge {
            entry: display_name(name),
            what: "the length of its name",
            value: name.len() as u64,
            limit: PATH_BYTES_MAX as u64,
        });
    }
    if name.contains(&0) {
        return Err(LayerError::BadName { entry: display_name(name), reason: "its name holds a NUL byte" });
    }
    let mut path: Vec<u8> = Vec::with_capacity(name.len());
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if path.is_empty() {
                    return Ok(None);
                }
                let keep = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(keep);
            }
            _ if component.len() > NAME_BYTES_MAX => {
                return Err(LayerError::TooLarge {
                    entry: display_name(name),
                    what: "the length of a component",
                    value: component.len() as u64,
                    limit: NAME_BYTES_MAX as u64,
                });
            }
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    Ok(Some(LayerPath(path)))
}

/// A foreign name, quoted, escaped and cut short for a message.
pub fn display_name(name: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    let shown = name.get(..SHOWN_BYTES_MAX).unwrap_or(name);
    let dots = if shown.len() < name.len() { "…" } else { "" };
    format!("\"{}\"{dots}", String::from_utf8_lossy(shown).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> String {
        match LayerPath::of_entry(name.as_bytes()).and_then(meaning) {
            Ok(Meaning::Plain(path)) => format!("plain {}", String::from_utf8_lossy(path.as_bytes())),
            Ok(Meaning::Whiteout(path)) => format!("whiteout {}", String::from_utf8_lossy(path.as_bytes())),
            Ok(Meaning::Opaque(path)) => format!("opaque {}", String::from_utf8_lossy(path.as_bytes())),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(entry("./a//b/./c/"), "plain a/b/c");
        assert_eq!(entry("./"), "plain ");
        assert_eq!(entry("/"), "plain ");
        assert_eq!(entry("a/../b"), "plain b");
        assert_eq!(entry("a/b/../c"), "plain a/c");
    }

    #[test]
    fn names_outside_the_root_are_refused() {
        expect_test::expect![[r#"tar entry "../etc/passwd" is refused: its name climbs out of the image's root"#]]
            .assert_eq(&entry("../etc/passwd"));
        expect_test::expect![[r#"tar entry "a/../../b" is refused: its name climbs out of the image's root"#]]
            .assert_eq(&entry("a/../../b"));
        expect_test::expect![[r#"tar entry "/etc/passwd" is refused: an absolute name"#]]
            .assert_eq(&entry("/etc/passwd"));
    }

    #[test]
    fn whiteouts_are_told_apart() {
        assert_eq!(entry("a/.wh.b"), "whiteout a/b");
        assert_eq!(entry(".wh.b"), "whiteout b");
        assert_eq!(entry("a/.wh..wh..opq"), "opaque a");
        assert_eq!(entry(".wh..wh..opq"), "opaque ");
        assert_eq!(entry(".wh..wh.plnk/1.2"), "plain .wh..wh.plnk/1.2");
        expect_test::expect![[r#"tar entry ".wh..." is refused: a whiteout of nothing"#]].assert_eq(&entry(".wh..."));
        expect_test::expect![[r#"tar entry ".wh.a/b" is refused: it lies below a whiteout"#]]
            .assert_eq(&entry(".wh.a/b"));
    }
}
