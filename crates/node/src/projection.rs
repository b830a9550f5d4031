//! The files of `configMap`, `secret`, `downwardAPI` and `projected` volumes: what they are (here, pure) and how they get
//! into a folder that containers are looking at (`write`).
//!
//! Source of the rules: Kubernetes' "Volumes" page, `pkg/volume/{configmap,secret,downwardapi,projected}`.

mod write;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, SecretProjection, Volume, VolumeProjection,
};

use crate::environment::{Live, Lookup, Values, pod_field, resource_field};
use crate::limits::{PROJECTED_FILES_MAX, PROJECTED_VOLUME_BYTES_MAX};
use crate::spec;
pub(crate) use write::{Owners, write};

/// Files are readable by all unless the volume says otherwise.
const MODE_DEFAULT: i32 = 0o644;

/// Why a volume has no content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProjectionError {
    /// Its object is not there.
    #[error("volume {volume:?}: {kind} {name:?} not found; create it in the pod's namespace, or mark it optional")]
    Missing {
        /// The volume.
        volume: String,
        /// `configmap` or `secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// The object lacks a key.
    #[error("volume {volume:?}: {kind} {name:?} has no key {key:?}; add it, or mark the volume optional")]
    MissingKey {
        /// The volume.
        volume: String,
        /// `configmap` or `secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field or amount that containers cannot know.
    #[error("volume {volume:?}: {field:?} is not available to containers")]
    Field {
        /// The volume.
        volume: String,
        /// Its path.
        field: String,
    },
    /// A path that leads out of the volume.
    #[error("volume {volume:?}: path {path:?} must be relative, without .. and not begin with ..")]
    Path {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// It is too large.
    #[error("volume {volume:?}: holds more than {PROJECTED_VOLUME_BYTES_MAX} bytes or {PROJECTED_FILES_MAX} files")]
    TooLarge {
        /// The volume.
        volume: String,
    },
}

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// A volume's files by their paths.
pub type Files = BTreeMap<String, File>;

/// The ConfigMaps and Secrets that the pod's volumes show, as `(kind, name)`.
#[must_use]
pub fn references(spec: &PodSpec) -> BTreeSet<(&'static str, String)> {
    let mut found = BTreeSet::new();
    for source in spec.volumes.iter().flatten().flat_map(sources) {
        found.extend(source.config_map.as_ref().map(|one| ("configmap", one.name.clone())));
        found.extend(source.secret.as_ref().map(|one| ("secret", one.name.clone())));
    }
    found
}

/// A volume's sources: those of a `projected` one, or the one that it is itself.
fn sources(volume: &Volume) -> Vec<VolumeProjection> {
    if let Some(projected) = &volume.projected {
        return projected.sources.clone().unwrap_or_default();
    }
    let config_map = volume.config_map.as_ref().map(|one| ConfigMapProjection {
        name: one.name.clone(),
        items: one.items.clone(),
        optional: one.optional,
    });
    let secret = volume.secret.as_ref().map(|one| SecretProjection {
        name: one.secret_name.clone().unwrap_or_default(),
        items: one.items.clone(),
        optional: one.optional,
    });
    let downward_api = volume
        .downward_api
        .as_ref()
        .map(|one| k8s_openapi::api::core::v1::DownwardAPIProjection { items: one.items.clone() });
    vec![VolumeProjection { config_map, secret, downward_api, ..VolumeProjection::default() }]
}

fn default_mode(volume: &Volume) -> u32 {
    let modes = [
        volume.config_map.as_ref().and_then(|one| one.default_mode),
        volume.secret.as_ref().and_then(|one| one.default_mode),
        volume.downward_api.as_ref().and_then(|one| one.default_mode),
        volume.projected.as_ref().and_then(|one| one.default_mode),
    ];
    mode(modes.into_iter().flatten().next().unwrap_or(MODE_DEFAULT))
}

fn mode(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

/// What is in a volume now. Of two sources that give the same path the later one wins.
pub fn project(pod: &Pod, volume: &Volume, live: &Live, lookup: Lookup<'_>) -> Result<Files, ProjectionError> {
    let projection = Projection { pod, volume: &volume.name, mode: default_mode(volume), live, lookup };
    let mut files = Files::new();
    for source in sources(volume) {
        if let Some(one) = &source.config_map {
            files.extend(projection.keys("configmap", &one.name, one.items.as_deref(), one.optional)?);
        }
        if let Some(one) = &source.secret {
            files.extend(projection.keys("secret", &one.name, one.items.as_deref(), one.optional)?);
        }
        for item in source.downward_api.iter().flat_map(|one| one.items.iter().flatten()) {
            files.extend([projection.downward(item)?]);
        }
    }
    let bytes: usize = files.values().map(|file| file.content.len()).sum();
    if bytes > PROJECTED_VOLUME_BYTES_MAX || files.len() > PROJECTED_FILES_MAX {
        return Err(ProjectionError::TooLarge { volume: volume.name.clone() });
    }
    Ok(files)
}

struct Projection<'a> {
    pod: &'a Pod,
    volume: &'a str,
    mode: u32,
    live: &'a Live,
    lookup: Lookup<'a>,
}

impl Projection<'_> {
    fn keys(
        &self,
        kind: &'static str,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<Files, ProjectionError> {
        let optional = optional == Some(true);
        let missing =
            |volume: &str| ProjectionError::Missing { volume: volume.to_owned(), kind, name: name.to_owned() };
        let mut values: Values = match (self.lookup)(kind, name) {
            Some(values) => values,
            None if optional => return Ok(Files::new()),
            None => return Err(missing(self.volume)),
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            let whole =
                values.into_iter().map(|(key, content)| Ok((self.path(&key)?, File { content, mode: self.mode })));
            return whole.collect();
        };
        let mut files = Files::new();
        for item in items {
            let mode = item.mode.map_or(self.mode, mode);
            match values.get_mut(&item.key) {
                // A key may be wanted at several paths.
                Some(content) => drop(files.insert(self.path(&item.path)?, File { content: content.clone(), mode })),
                None if optional => {}
                None => {
                    let (volume, name, key) = (self.volume.to_owned(), name.to_owned(), item.key.clone());
                    return Err(ProjectionError::MissingKey { volume, kind, name, key });
                }
            }
        }
        Ok(files)
    }

    fn downward(&self, item: &DownwardAPIVolumeFile) -> Result<(String, File), ProjectionError> {
        let absent = |field: &str| ProjectionError::Field { volume: self.volume.to_owned(), field: field.to_owned() };
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => match field.field_path.as_str() {
                "metadata.labels" => listed(self.pod.metadata.labels.as_ref()),
                "metadata.annotations" => listed(self.pod.metadata.annotations.as_ref()),
                path => pod_field(self.pod, field, self.live).ok_or_else(|| absent(path))?,
            },
            (None, Some(field)) => {
                let name = field.container_name.as_deref().unwrap_or_default();
                let container = self.pod.spec.as_ref().and_then(|spec| spec::find(spec, name));
                let amount = container.and_then(|container| resource_field(&container, field, self.live));
                amount.ok_or_else(|| absent(&field.resource))?
            }
            (None, None) => return Err(absent("")),
        };
        let mode = item.mode.map_or(self.mode, mode);
        Ok((self.path(&item.path)?, File { content: text.into_bytes(), mode }))
    }

    /// A path inside the volume. `..` at the beginning is how the volume's own inner works are called.
    fn path(&self, path: &str) -> Result<String, ProjectionError> {
        let mut parts = path.split('/');
        let is_fine = !path.starts_with("..")
            && path.len() <= 4096
            && parts.all(|part| {
                !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.contains('\0')
            });
        let refuse = || ProjectionError::Path { volume: self.volume.to_owned(), path: path.to_owned() };
        if is_fine { Ok(path.to_owned()) } else { Err(refuse()) }
    }
}

/// Labels and annotations as a file: `key="value"`, one a line.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
