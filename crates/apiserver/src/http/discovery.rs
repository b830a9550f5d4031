//! What is served, told to clients: the plain discovery documents and the aggregated ones of kubectl 1.26 and later.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::catalog::Catalog;
use crate::error::ApiError;
use crate::http::negotiate::{Format, offers};
use crate::http::respond;
use crate::http::route::Discovery;
use crate::resources::{Resource, VERBS};

/// A discovery document.
pub(crate) fn answer(catalog: &Catalog, wanted: &Discovery, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let document = match wanted {
        Discovery::Core | Discovery::Groups => {
            if let Some(version) = aggregated_version(headers) {
                return aggregated(catalog, *wanted == Discovery::Core, version);
            }
            if *wanted == Discovery::Core {
                json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
            } else {
                let groups: Vec<Value> = groups(catalog).into_iter().map(|name| group(catalog, name)).collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
        }
        Discovery::Group(name) => {
            if !groups(catalog).contains(&name.as_str()) {
                return Err(ApiError::no_such_path());
            }
            let mut document = group(catalog, name);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        Discovery::Version(group, version) => {
            resource_list(catalog, group, version).ok_or_else(ApiError::no_such_path)?
        }
    };
    respond::document(StatusCode::OK, Format::Json, false, &document)
}

/// Named groups, without core.
fn groups(catalog: &Catalog) -> Vec<&str> {
    let mut groups: Vec<&str> =
        catalog.resources.iter().map(|one| one.group.as_str()).filter(|group| !group.is_empty()).collect();
    groups.dedup();
    groups
}

fn versions<'a>(catalog: &'a Catalog, group: &str) -> Vec<&'a str> {
    let mut versions: Vec<&str> =
        catalog.resources.iter().filter(|one| one.group == group).map(|one| one.version.as_str()).collect();
    versions.dedup();
    versions
}

fn group(catalog: &Catalog, name: &str) -> Value {
    let versions: Vec<Value> = versions(catalog, name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

fn resource_list(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for one in catalog.resources.iter().filter(|one| one.group == group && one.version == version) {
        let mut entry = json!({
            "name": one.plural,
            "singularName": one.singular,
            "namespaced": one.namespaced,
            "kind": one.kind,
            "verbs": VERBS,
        });
        if !one.short_names.is_empty() {
            entry["shortNames"] = json!(one.short_names);
        }
        if !one.categories.is_empty() {
            entry["categories"] = json!(one.categories);
        }
        list.push(entry);
        for subresource in &one.subresources {
            list.push(json!({
                "name": format!("{}/{}", one.plural, subresource.name),
                "singularName": "",
                "namespaced": one.namespaced,
                "kind": subresource.kind,
                "verbs": subresource.verbs,
            }));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// `v2` (kubectl 1.30 and later) or `v2beta1` (1.26), if the client asks for all in one document first.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    offers(headers).iter().find_map(|offer| {
        let asks = offer.parameter("g") == "apidiscovery.k8s.io" && offer.parameter("as") == "APIGroupDiscoveryList";
        match offer.parameter("v") {
            "v2" if asks => Some("v2"),
            "v2beta1" if asks => Some("v2beta1"),
            _ => None,
        }
    })
}

fn aggregated(catalog: &Catalog, core: bool, version: &'static str) -> Result<Response<Body>, ApiError> {
    let names = if core { vec![""] } else { groups(catalog) };
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = versions(catalog, name)
                .into_iter()
                .map(|version| {
                    let all = catalog.resources.iter().filter(|one| one.group == name && one.version == version);
                    json!({"version": version, "freshness": "Current", "resources": all.map(discovered).collect::<Vec<_>>()})
                })
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let mut response = respond::document(StatusCode::OK, Format::Json, false, &document)?;
    let media = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    Ok(response)
}

fn discovered(one: &Resource) -> Value {
    let kind = |kind: &str| json!({"group": one.group, "version": one.version, "kind": kind});
    let subresources: Vec<Value> = one
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind(&sub.kind), "verbs": sub.verbs}))
        .collect();
    let mut entry = json!({
        "resource": one.plural,
        "responseKind": kind(&one.kind),
        "scope": if one.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": one.singular,
        "verbs": VERBS,
        "shortNames": one.short_names,
        "categories": one.categories,
    });
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}
