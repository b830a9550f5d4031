//! The volumes of a pod's spec, and where its containers want them.
//!
//! Three kinds of volumes take three ways: directories that the runtime makes and takes away with the sandbox (`emptyDir`,
//! `hostPath`), folders that the node writes and keeps in step with the API (`configMap`, `secret`, `downwardAPI`,
//! `projected`: see [`crate::projection`]), and images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, HostPathVolumeSource, PodSpec, Volume, VolumeDevice, VolumeMount as SpecMount, VolumeProjection,
};
use sampan_image::Image;
use sampan_kit::quantity::Quantity;
use sampan_runtime::container::DeviceConfig;
use sampan_runtime::volume::{
    HostPathKind, MountOrigin, Ownership, Propagation, VolumeConfig, VolumeMount, VolumeSource,
};

use super::{Materials, SpecError, bad_quantity, unsupported};
use crate::environment::expand_known;

/// The volumes that the runtime makes.
pub(super) fn volumes(spec: &PodSpec) -> Result<Vec<VolumeConfig>, SpecError> {
    let mut configs = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        refuse_unsupported(volume)?;
        let source = match (&volume.empty_dir, &volume.host_path) {
            (Some(empty_dir), _) => {
                let limit = empty_dir.size_limit.as_ref();
                let limit = limit.map(|text| Quantity::parse(&text.0).map_err(bad_quantity("emptyDir.sizeLimit")));
                if empty_dir.medium.as_deref().is_some_and(|medium| medium.starts_with("HugePages")) {
                    return Err(unsupported(format!("volume {:?}: emptyDir.medium HugePages", volume.name)));
                }
                VolumeSource::EmptyDir {
                    memory: empty_dir.medium.as_deref() == Some("Memory"),
                    size_bytes: limit.transpose()?.and_then(|limit| u64::try_from(limit.units()).ok()),
                }
            }
            // A device is passed into containers as such, and by nothing that is prepared for the pod.
            (None, Some(host_path)) if is_device(host_path) => continue,
            (None, Some(host_path)) => host_path_source(host_path)?,
            (None, None) => continue,
        };
        configs.push(VolumeConfig { name: volume.name.clone(), source });
    }
    Ok(configs)
}

/// Whether the node itself writes the volume's content.
#[must_use]
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The volumes that are images: name, reference and the policy of pulling it.
pub fn image_volumes(spec: &PodSpec) -> impl Iterator<Item = (&str, &str, Option<&str>)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some((volume.name.as_str(), image.reference.as_deref().unwrap_or_default(), image.pull_policy.as_deref()))
    })
}

fn refuse_unsupported(volume: &Volume) -> Result<(), SpecError> {
    let refuse = |what: &str| Err(unsupported(format!("volume {:?}: {what}", volume.name)));
    let is_served =
        is_projected(volume) || volume.empty_dir.is_some() || volume.host_path.is_some() || volume.image.is_some();
    if !is_served {
        return refuse("a source other than emptyDir, hostPath, configMap, secret, downwardAPI, projected and image");
    }
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for source in sources {
        let VolumeProjection { service_account_token, cluster_trust_bundle, pod_certificate, .. } = source;
        if service_account_token.is_some() {
            return refuse("projected.sources.serviceAccountToken");
        }
        if cluster_trust_bundle.is_some() {
            return refuse("projected.sources.clusterTrustBundle");
        }
        if pod_certificate.is_some() {
            return refuse("projected.sources.podCertificate");
        }
    }
    Ok(())
}

fn is_device(host_path: &HostPathVolumeSource) -> bool {
    matches!(host_path.type_.as_deref(), Some("BlockDevice" | "CharDevice"))
}

fn host_path_source(host_path: &HostPathVolumeSource) -> Result<VolumeSource, SpecError> {
    let kind = match host_path.type_.as_deref().unwrap_or_default() {
        "" => HostPathKind::Unchecked,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        other => return Err(unsupported(format!("hostPath.type {other}"))),
    };
    Ok(VolumeSource::HostPath { path: PathBuf::from(&host_path.path), kind })
}

/// Where a container's volumes appear.
pub(super) fn container_mounts(
    spec: &PodSpec,
    container: &Container,
    materials: &Materials<'_>,
) -> Result<Vec<VolumeMount>, SpecError> {
    let one = |mount: &SpecMount| container_mount(spec, mount, materials);
    container.volume_mounts.iter().flatten().map(one).collect()
}

fn container_mount(spec: &PodSpec, mount: &SpecMount, materials: &Materials<'_>) -> Result<VolumeMount, SpecError> {
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
    let projected = volume.is_some_and(is_projected);
    let image = volume.is_some_and(|volume| volume.image.is_some());
    let mut wanted = VolumeMount::new(origin(mount, projected, &materials.images), &mount.mount_path);
    wanted.sub_path = sub_path(mount, &materials.env)?;
    wanted.read_only = mount.read_only == Some(true) || projected || image;
    wanted.propagation = match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => return Err(unsupported(format!("volumeMounts.mountPropagation {other}"))),
    };
    wanted.recursive_read_only = match mount.recursive_read_only.as_deref() {
        Some("Enabled") => true,
        Some("IfPossible") => wanted.read_only && wanted.propagation == Propagation::Private,
        _ => false,
    };
    if projected {
        wanted.origin = MountOrigin::Host { path: materials.projected.join(&mount.name), create: false };
        // Its files belong to the pod's users already.
        wanted.ownership = Ownership::Host;
    }
    Ok(wanted)
}

fn origin(mount: &SpecMount, projected: bool, images: &BTreeMap<String, Arc<Image>>) -> MountOrigin {
    match images.get(&mount.name).filter(|_| !projected) {
        Some(image) => MountOrigin::Image(Arc::clone(image)),
        None => MountOrigin::Volume(mount.name.clone()),
    }
}

/// The path inside the volume: as it is written, or with the container's variables in it, which all have to be known.
fn sub_path(mount: &SpecMount, env: &[(String, String)]) -> Result<Option<String>, SpecError> {
    let Some(expression) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(mount.sub_path.clone());
    };
    let invalid = |reason: String| SpecError::Invalid { field: "volumeMounts.subPathExpr".to_owned(), reason };
    let path = expand_known(expression, env).map_err(|name| {
        invalid(format!("{expression:?} names variable {name:?}, which the container does not have"))
    })?;
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(invalid(format!("{path:?} leads out of the volume; it must be relative and without ..")));
    }
    Ok(Some(path))
}

/// The block and character devices that a container asks for.
pub(super) fn devices(spec: &PodSpec, container: &Container) -> Result<Vec<DeviceConfig>, SpecError> {
    let one = |device: &VolumeDevice| {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == device.name);
        let host_path = volume.and_then(|volume| volume.host_path.as_ref()).filter(|host_path| is_device(host_path));
        let path = host_path.ok_or_else(|| SpecError::Invalid {
            field: format!("container {:?}: volumeDevices", container.name),
            reason: format!("volume {:?} is no hostPath of type BlockDevice or CharDevice", device.name),
        })?;
        let container_path = device.device_path.clone();
        Ok(DeviceConfig { host_path: PathBuf::from(&path.path), container_path, permissions: "rwm".to_owned() })
    };
    container.volume_devices.iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::{SpecError, devices, sub_path, volumes};
    use k8s_openapi::api::core::v1::{PodSpec, VolumeMount};
    use serde_json::{Value, json};

    fn spec(volume: Value) -> PodSpec {
        serde_json::from_value(json!({"containers": [{"name": "main"}], "volumes": [volume]})).unwrap()
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (volume, named) in [
            (json!({"name": "v", "nfs": {"server": "s", "path": "/"}}), "a source other than"),
            (
                json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
                "serviceAccountToken",
            ),
            (json!({"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}), "HugePages"),
        ] {
            let Err(SpecError::Unsupported { field }) = volumes(&spec(volume)) else { panic!("{named} is served") };
            assert!(field.contains(named), "{field}");
        }
        for volume in [
            json!({"name": "v", "configMap": {"name": "c"}}),
            json!({"name": "v", "image": {"reference": "x"}}),
            json!({"name": "v", "hostPath": {"path": "/dev/loop0", "type": "BlockDevice"}}),
        ] {
            assert_eq!(volumes(&spec(volume)), Ok(vec![]));
        }
    }

    #[test]
    fn expressions_are_paths_inside_the_volume() {
        let env = [("NAME".to_owned(), "web".to_owned()), ("BAD".to_owned(), "../x".to_owned())];
        let path = |text: &str| {
            sub_path(&VolumeMount { sub_path_expr: Some(text.to_owned()), ..VolumeMount::default() }, &env)
        };
        assert_eq!(path("logs/$(NAME)"), Ok(Some("logs/web".to_owned())));
        assert_eq!(path("$$(NAME)"), Ok(Some("$(NAME)".to_owned())));
        for refused in ["$(NOBODY)", "a/$(BAD)", "/a"] {
            assert!(path(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn only_devices_are_devices() {
        let container =
            serde_json::from_value(json!({"name": "m", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}));
        let container = container.unwrap();
        let block = spec(json!({"name": "v", "hostPath": {"path": "/dev/loop0", "type": "BlockDevice"}}));
        assert_eq!(devices(&block, &container).unwrap()[0].container_path, "/dev/x");
        assert!(devices(&spec(json!({"name": "v", "emptyDir": {}})), &container).is_err());
    }
}
