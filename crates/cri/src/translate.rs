//! From the interface's messages to what the runtime makes of them. Pure but for profiles read from files.
//!
//! What cannot be obeyed is refused by name: a container must not come up with less protection than it was asked for.

mod container;
mod pod;
mod resources;
mod signal;

pub(crate) use container::{Sources, container_config};
pub(crate) use pod::{apply_sandbox_resources, pod_config, pod_uid};
pub(crate) use resources::{merged, resources};
pub(crate) use signal::signal_name;

use sampan_sandbox::IdMap;

use crate::error::CallError;
use crate::proto::v1::IdMapping;

/// The maps that the kubelet has chosen; as it does, one piece that begins with 0.
fn id_maps(field: &str, maps: &[IdMapping]) -> Result<Option<Vec<IdMap>>, CallError> {
    match maps {
        [] => Ok(None),
        [only] if only.container_id == 0 && only.length > 0 => {
            Ok(Some(vec![IdMap { inside: only.container_id, outside: only.host_id, length: only.length }]))
        }
        [_] => Err(CallError::Invalid(format!("{field}: id 0 of the container is not mapped; begin the map with it"))),
        _ => Err(CallError::Invalid(format!("{field}: only one piece is supported; join them"))),
    }
}
