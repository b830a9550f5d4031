//! Every crate we link must have a licence that Apache-2.0 software may carry.

use super::Finding;
use super::workspace::Workspace;

/// Permissive licences; nothing that asks derived works to be free.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(super) fn check(workspace: &Workspace) -> Vec<Finding> {
    let packages = workspace.foreign.iter().chain(&workspace.members);
    let refused = packages.filter(|package| !package.license.as_deref().is_some_and(is_allowed));
    refused
        .map(|package| {
            let licence = package.license.as_deref().unwrap_or("none");
            Finding::new("Cargo.lock", format!("{} {} has the licence {licence}", package.name, package.version))
        })
        .collect()
}

/// Whether an SPDX expression can be met with allowed licences; the old `/` means OR.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    matches!(alternatives(&tokens), Some((true, [])))
}

/// `a OR b`: whether it is met, and what follows it; nothing if it is not an expression.
fn alternatives<'t>(tokens: &'t [&'t str]) -> Option<(bool, &'t [&'t str])> {
    let (mut met, mut rest) = conjunction(tokens)?;
    while let ["OR", more @ ..] = rest {
        let (other, after) = conjunction(more)?;
        (met, rest) = (met || other, after);
    }
    Some((met, rest))
}

/// `a AND b`, which binds tighter than OR.
fn conjunction<'t>(tokens: &'t [&'t str]) -> Option<(bool, &'t [&'t str])> {
    let (mut met, mut rest) = licence(tokens)?;
    while let ["AND", more @ ..] = rest {
        let (other, after) = licence(more)?;
        (met, rest) = (met && other, after);
    }
    Some((met, rest))
}

fn licence<'t>(tokens: &'t [&'t str]) -> Option<(bool, &'t [&'t str])> {
    match tokens {
        ["(", inner @ ..] => match alternatives(inner)? {
            (met, [")", rest @ ..]) => Some((met, rest)),
            _ => None,
        },
        [name, "WITH", exception, rest @ ..] => {
            Some((ALLOWED.contains(&format!("{name} WITH {exception}").as_str()), rest))
        }
        [name, rest @ ..] => Some((ALLOWED.contains(name), rest)),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn check(expression: &str, allowed: bool) {
        assert_eq!(super::is_allowed(expression), allowed, "{expression}");
    }

    #[test]
    fn expressions() {
        check("MIT", true);
        check("MIT/Apache-2.0", true);
        check("GPL-3.0-only", false);
        check("GPL-3.0-only OR MIT", true);
        check("GPL-3.0-only AND MIT", false);
        check("MIT OR GPL-3.0-only AND ISC", true);
        check("(MIT OR GPL-3.0-only) AND Unicode-3.0", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("GPL-2.0-only WITH Classpath-exception-2.0", false);
        check("(MIT", false);
        check("MIT OR", false);
        check("MIT ISC", false);
        check("", false);
    }
}
