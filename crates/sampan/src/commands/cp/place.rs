//! The two sides of a copy: which is the instance, and what a path in it means by its letters alone.

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Side<'text> {
    /// `-`: a tar stream.
    Stream,
    /// A path of this machine.
    Local(&'text str),
    /// A path in an instance.
    Remote(Remote),
}

/// A path in an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) instance: String,
    /// The components of the path; it begins at the root, and `.` and `..` are resolved.
    components: Vec<String>,
    /// It ended in `/`, so that only a directory can be meant.
    pub(super) wants_directory: bool,
    /// It ended in `/.`, so that what is in the directory is meant.
    pub(super) contents_only: bool,
}

impl<'text> Side<'text> {
    /// docker's rule: a colon makes an instance, unless the text begins like a path.
    pub(super) fn parse(text: &'text str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((instance, path))
                if !instance.is_empty() && !text.starts_with(['/', '.']) && !instance.contains('/') =>
            {
                Self::Remote(Remote::new(instance, path))
            }
            _ => Self::Local(text),
        }
    }
}

impl Remote {
    fn new(instance: &str, path: &str) -> Self {
        let mut components: Vec<String> = Vec::new();
        for component in path.split('/') {
            match component {
                "" | "." => {}
                ".." => drop(components.pop()),
                component => components.push(component.to_owned()),
            }
        }
        let contents_only = path == "." || path.ends_with("/.") || components.is_empty();
        let wants_directory = contents_only || path.ends_with('/') || path.ends_with("..");
        Self { instance: instance.to_owned(), components, wants_directory, contents_only }
    }

    /// The whole path.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.components.join("/"))
    }

    /// The directory it is in.
    pub(super) fn parent(&self) -> String {
        format!("/{}", self.components.get(..self.components.len().saturating_sub(1)).unwrap_or_default().join("/"))
    }

    /// Its last component; empty for the root.
    pub(super) fn base(&self) -> String {
        self.components.last().cloned().unwrap_or_default()
    }

    pub(super) fn is_root(&self) -> bool {
        self.components.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_in_docker() {
        assert_eq!(Side::parse("-"), Side::Stream);
        for local in ["x", "./a:b", "/a:b", "../a:b", ":x", "dir/a:b"] {
            assert_eq!(Side::parse(local), Side::Local(local));
        }
        assert!(matches!(Side::parse("web:"), Side::Remote(remote) if remote.is_root() && remote.path() == "/"));
    }

    #[test]
    fn paths_stay_within_the_instance() {
        let show = |path: &str| {
            let remote = Remote::new("web", path);
            format!(
                "{} {} {} {} {}",
                remote.path(),
                remote.parent(),
                remote.base(),
                remote.wants_directory,
                remote.contents_only
            )
        };
        assert_eq!(show("/a/b"), "/a/b /a b false false");
        assert_eq!(show("a/./b/"), "/a/b /a b true false");
        assert_eq!(show("/a/b/."), "/a/b /a b true true");
        assert_eq!(show("../../etc/../x"), "/x / x false false");
        assert_eq!(show("/"), "/ /  true true");
    }
}
