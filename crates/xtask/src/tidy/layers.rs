//! Crates point only downward.
//!
//! The table follows DESIGN.md, from which it differs in three points:
//! - `streaming` is a room of its own on layer 2: the API server and the node both speak of remote commands, and
//!   neither may see the other's implementation for it.
//! - DESIGN.md has siblings of a layer never see each other; [`SIDEWAYS`] lists the exceptions with their reasons.
//! - Rooms that do not exist yet (`metering`, `web`) are not in the table; whoever opens a room adds its line.

use super::Finding;
use super::workspace::Workspace;

/// Rooms by layer, lowest first. A room depends on lower layers only.
const LAYERS: [&[&str]; 6] = [
    &["kit", "sys"],
    &["erofs", "oci", "placement", "wire"],
    &["registry", "image", "network", "agent", "sandbox", "store", "streaming"],
    &["runtime", "apiserver", "controllers", "node", "cri"],
    &["sampan"],
    &["e2e", "bench", "fuzz-targets", "xtask"],
];

/// Dependencies inside a layer that are meant: who, whom, and why.
const SIDEWAYS: [(&str, &str, &str); 8] = [
    ("image", "registry", "the image store pulls, and the client has no other user"),
    ("sandbox", "agent", "the zygote, which is a mode of the sandbox room, becomes the agent"),
    ("node", "runtime", "the slim kubelet drives pods through the runtime, as a kubelet does through CRI"),
    ("cri", "runtime", "the container runtime interface is how a kubelet drives pods through the runtime"),
    ("node", "apiserver", "the node implements the API server's link to it, in process"),
    ("controllers", "apiserver", "the scheduler admits pods inside the API server's transaction"),
    ("bench", "e2e", "what is measured are the images and the registry that the tests run on"),
    ("xtask", "e2e", "the emulated machine runs an image of the tests', made the same way"),
];

pub(super) fn check(workspace: &Workspace) -> Vec<Finding> {
    let edges = workspace.members.iter().map(|package| (package.name.as_str(), package.rooms()));
    edges.flat_map(|(room, others)| check_room(room, others)).collect()
}

fn check_room<'a>(package: &'a str, others: impl IntoIterator<Item = &'a str>) -> Vec<Finding> {
    let room = room_name(package);
    let place = format!("crates/{room}/Cargo.toml");
    let Some(layer) = layer_of(room) else {
        return vec![Finding::new(place, "the room has no layer in crates/xtask/src/tidy/layers.rs")];
    };
    let mut findings = Vec::new();
    for other in others.into_iter().map(room_name) {
        // A room that is missing from the table gets a finding of its own.
        let Some(below) = layer_of(other) else { continue };
        let meant = SIDEWAYS.iter().any(|(from, to, _)| (*from, *to) == (room, other));
        if below > layer || (below == layer && !meant) {
            let direction = if below > layer { "upward" } else { "sideways" };
            findings.push(Finding::new(&place, format!("{room} points {direction} at {other}")));
        }
    }
    findings
}

fn room_name(package: &str) -> &str {
    package.strip_prefix("sampan-").unwrap_or(package)
}

fn layer_of(room: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(room: &str, other: &str, expected: Option<&str>) {
        let messages: Vec<String> = check_room(room, [other]).into_iter().map(|finding| finding.message).collect();
        assert_eq!(messages, Vec::from_iter(expected));
    }

    #[test]
    fn only_downward_and_what_is_listed() {
        check("sampan-image", "sampan-erofs", None);
        check("sampan-image", "sampan-registry", None);
        check("sampan-registry", "sampan-image", Some("registry points sideways at image"));
        check("sampan-erofs", "sampan-node", Some("erofs points upward at node"));
        check("sampan-oci", "sampan-erofs", Some("oci points sideways at erofs"));
        check("sampan-new", "sampan-kit", Some("the room has no layer in crates/xtask/src/tidy/layers.rs"));
    }

    #[test]
    fn exceptions_are_inside_one_layer() {
        for (from, to, _) in SIDEWAYS {
            assert!(layer_of(from).is_some() && layer_of(from) == layer_of(to), "{from} and {to}");
        }
    }
}
