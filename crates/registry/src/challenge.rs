//! Reading `WWW-Authenticate`: which ways of authentication a registry offers.
//!
//! Source: RFC 9110, section 11.6.1. The header is foreign text; any bytes are safe to pass.

/// A challenge that this crate can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The best challenge of all header lines: Bearer before Basic, as the distribution project's client has it.
pub(crate) fn best<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, parameters) in lines.flat_map(challenges) {
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters; a comma separates both parameters and challenges, so a word without `=` begins a new one.
fn challenges(line: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(['=', ',', ' ', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // Either the end, or a stray `=` that nothing can be made of.
            return found;
        }
        let Some(value) = after.strip_prefix('=') else {
            found.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let (value, after) = value_of(value);
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
        rest = after;
    }
}

/// A token or quoted string at the start of `text`, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => value.extend(letters.next()),
            other => value.push(other),
        }
    }
    (value, letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn real_challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let expected =
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/x:pull,push"));
        assert_eq!(best([hub].into_iter()), expected);
        assert_eq!(best(["Basic realm=\"Registry Realm\""].into_iter()), Some(Challenge::Basic));
        assert_eq!(best(["Basic realm=x, bearer Realm = y"].into_iter()), Some(Challenge::Basic));
        assert_eq!(
            best([r#"Basic realm="a, b", BEARER realm=https://t/,service="q\"q""#].into_iter()),
            bearer("https://t/", Some("q\"q"), None)
        );
        assert_eq!(best(["Negotiate", "Digest realm=x"].into_iter()), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in "([a-zA-Z]{1,6}[ ,=\"\\\\]{0,3}){0,20}|\\PC{0,60}") {
            best([text.as_str()].into_iter());
        }
    }
}
