//! From a path to what it names.

use crate::catalog::Catalog;
use crate::http::query::decode;
use crate::resources::Resource;

/// What a request's path names.
#[derive(Debug)]
pub(crate) enum Route<'a> {
    /// An object or a list of them.
    Resource(Target<'a>),
    /// `/api`, `/apis`, `/api/v1`, `/apis/GROUP`, `/apis/GROUP/VERSION`.
    Discovery(Discovery),
    /// Anything else that is served: `/version`, `/healthz`, `/openapi/v3/…`.
    Plain(String),
    /// Nothing.
    Unknown,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Discovery {
    Core,
    Groups,
    Group(String),
    Version(String, String),
}

/// A resource's path, taken apart.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What stands after the subresource, still encoded, with its leading slash.
    pub(crate) rest: String,
}

const PLAIN: [&str; 6] = ["/version", "/healthz", "/livez", "/readyz", "/metrics", "/openapi"];

/// Finds what a path names.
pub(crate) fn route<'a>(catalog: &'a Catalog, path: &str) -> Route<'a> {
    if PLAIN.iter().any(|plain| path.strip_prefix(plain).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))) {
        return Route::Plain(path.trim_end_matches('/').to_owned());
    }
    let mut parts = path.trim_start_matches('/').split('/').map(|part| decode(part, false)).collect::<Vec<_>>();
    while parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    let mut parts = parts.into_iter();
    let (group, version) = match parts.next().as_deref() {
        Some("api") => match parts.next() {
            None => return Route::Discovery(Discovery::Core),
            Some(version) => (String::new(), version),
        },
        Some("apis") => match (parts.next(), parts.next()) {
            (None, _) => return Route::Discovery(Discovery::Groups),
            (Some(group), None) => return Route::Discovery(Discovery::Group(group)),
            (Some(group), Some(version)) => (group, version),
        },
        _ => return Route::Unknown,
    };
    let rest: Vec<String> = parts.collect();
    if rest.is_empty() {
        return Route::Discovery(Discovery::Version(group, version));
    }
    target(catalog, &group, &version, &rest, path).map_or(Route::Unknown, Route::Resource)
}

fn target<'a>(catalog: &'a Catalog, group: &str, version: &str, parts: &[String], path: &str) -> Option<Target<'a>> {
    // `namespaces/N/pods` is about pods; `namespaces/N` and `namespaces/N/status` are about the namespace.
    if let [first, namespace, plural, after @ ..] = parts
        && first == "namespaces"
        && let Some(resource) = catalog.find(group, version, plural)
        && resource.namespaced
    {
        return within(resource, Some(namespace.clone()), after, path);
    }
    let [plural, after @ ..] = parts else { return None };
    within(catalog.find(group, version, plural)?, None, after, path)
}

fn within<'a>(resource: &'a Resource, namespace: Option<String>, parts: &[String], path: &str) -> Option<Target<'a>> {
    let mut target = Target { resource, namespace, name: None, subresource: None, rest: String::new() };
    match parts {
        [] => {}
        [name] => target.name = Some(name.clone()),
        [name, subresource, rest @ ..] => {
            let known = resource.subresource(subresource)?;
            if !rest.is_empty() && known.name != "proxy" {
                return None;
            }
            target.name = Some(name.clone());
            target.subresource = Some(subresource.clone());
            // Taken from the undecoded path, since what is behind the proxy decodes for itself.
            let before = path_depth(&target) + 2;
            let rest = path.trim_start_matches('/').splitn(before + 1, '/').nth(before);
            target.rest = format!("/{}", rest.unwrap_or_default());
        }
    }
    // A namespaced object has a namespace; only lists go over all of them.
    let complete = target.name.is_none() || !resource.namespaced || target.namespace.is_some();
    complete.then_some(target)
}

/// Segments before an object's name: `api/v1/nodes` 3, `api/v1/namespaces/N/pods` 5, with a group one more.
fn path_depth(target: &Target<'_>) -> usize {
    let group = usize::from(!target.resource.group.is_empty());
    let namespace = if target.namespace.is_some() { 2 } else { 0 };
    3 + group + namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_they_should() -> Result<(), crate::catalog::CatalogError> {
        let catalog = Catalog::load()?;
        let check = |path: &str, expected: &str| {
            let text = match route(&catalog, path) {
                Route::Resource(target) => format!(
                    "{} {} {} {} {}",
                    target.resource.plural,
                    target.namespace.as_deref().unwrap_or("-"),
                    target.name.as_deref().unwrap_or("-"),
                    target.subresource.as_deref().unwrap_or("-"),
                    if target.rest.is_empty() { "-" } else { &target.rest },
                ),
                Route::Discovery(discovery) => format!("{discovery:?}"),
                Route::Plain(path) => path,
                Route::Unknown => "?".to_owned(),
            };
            assert_eq!(text, expected, "{path}");
        };
        check("/api/v1/pods", "pods - - - -");
        check("/api/v1/namespaces/a/pods/", "pods a - - -");
        check("/api/v1/namespaces/a/pods/b", "pods a b - -");
        check("/api/v1/namespaces/a/pods/b/exec", "pods a b exec /");
        check("/api/v1/namespaces/a/pods/b/exec/c", "?");
        check("/api/v1/namespaces/a", "namespaces - a - -");
        check("/api/v1/namespaces/a/status", "namespaces - a status /");
        check("/api/v1/namespaces/a/nothing", "?");
        check("/api/v1/pods/b", "?");
        check("/api/v1/nodes/n/proxy/images%2Fx/pull", "nodes - n proxy /images%2Fx/pull");
        check("/api/v1/nodes/n/proxy", "nodes - n proxy /");
        check("/api", "Core");
        check("/apis/", "Groups");
        check("/api/v1", "Version(\"\", \"v1\")");
        check("/healthz/", "/healthz");
        check("/healthzz", "?");
        check("/", "?");
        Ok(())
    }
}
