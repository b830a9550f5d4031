//! Paths of the API, with every name in them percent-encoded (RFC 3986), so that no name can become another request.

use std::fmt::Write as _;

/// One segment of a path, or one value of a query.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").ok();
        }
    }
    // A segment of dots alone would be taken for a step within the path.
    if !encoded.is_empty() && encoded.bytes().all(|byte| byte == b'.') { encoded.replace('.', "%2E") } else { encoded }
}

/// A query out of names and values, with its `?`; empty without any.
pub(crate) fn query<'text>(pairs: impl IntoIterator<Item = (&'text str, String)>) -> String {
    let joined: Vec<String> =
        pairs.into_iter().map(|(name, value)| format!("{}={}", encode(name), encode(&value))).collect();
    if joined.is_empty() { String::new() } else { format!("?{}", joined.join("&")) }
}

/// The pods of a namespace, or of all.
pub(crate) fn pods(namespace: Option<&str>) -> String {
    namespace
        .map_or_else(|| "/api/v1/pods".to_owned(), |namespace| format!("/api/v1/namespaces/{}/pods", encode(namespace)))
}

/// One pod.
pub(crate) fn pod(namespace: &str, name: &str) -> String {
    format!("{}/{}", pods(Some(namespace)), encode(name))
}

/// An endpoint of ours on a node.
pub(crate) fn node(node: &str, endpoint: &str) -> String {
    format!("/api/v1/nodes/{}/proxy/{endpoint}", encode(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(pod("default", "../../nodes?x#y z"), "/api/v1/namespaces/default/pods/..%2F..%2Fnodes%3Fx%23y%20z");
        assert_eq!(pod("..", "é"), "/api/v1/namespaces/%2E%2E/pods/%C3%A9");
        assert_eq!(query([("command", "a b".to_owned()), ("x", "1&2".to_owned())]), "?command=a%20b&x=1%262");
    }
}
