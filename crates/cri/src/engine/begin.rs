//! Making and starting containers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sampan_image::Image;
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::container::ContainerConfig;
use sampan_runtime::timeline::Timeline;
use tonic::Status;

use super::{ContainerEntry, Engine, PodEntry, locked, nanoseconds, new_id, now};
use crate::error::CallError;
use crate::limits::CONTAINERS_MAX;
use crate::proto::v1::{self, ContainerEventType, CreateContainerRequest, LinuxContainerUser};
use crate::records::{ContainerRecord, Phase};
use crate::translate::{self, Sources};

/// What containerd and the kubelet know as the code of a program that did not start.
const START_FAILED: i32 = 128;

/// A container's image, and those of its volumes by what the request calls them.
type ImagesOf = (Arc<Image>, HashMap<String, Arc<Image>>);

impl Engine {
    /// Makes a container; gives its id. The same request again, during or after, gives the same container.
    pub(crate) async fn create_container(self: &Arc<Self>, request: CreateContainerRequest) -> Result<String, Status> {
        let config = request.config.ok_or_else(|| CallError::Invalid("config: is missing".to_owned()))?;
        let pod = self.pod(&request.pod_sandbox_id)?;
        let metadata = config.metadata.clone().filter(|metadata| !metadata.name.is_empty());
        let metadata = metadata.ok_or_else(|| CallError::Invalid("config.metadata.name: is empty".to_owned()))?;
        let engine = Arc::clone(self);
        let key = format!("create {}/{}/{}", pod.id, metadata.name, metadata.attempt);
        self.once(key, async move { engine.make_container(&pod, config).await }).await
    }

    async fn make_container(
        self: Arc<Self>,
        pod: &Arc<PodEntry>,
        config: v1::ContainerConfig,
    ) -> Result<String, CallError> {
        pod.ready()?;
        for known in self.containers_of(pod) {
            let (named, same) = known.read(|record| {
                let other = record.config.as_ref();
                (other.is_some_and(|other| other.metadata == config.metadata), other == Some(&config))
            });
            if named {
                if same {
                    return Ok(known.id.clone());
                }
                let why = format!("container {} has this name and attempt already; remove it first", known.id);
                return Err(CallError::Taken(why));
            }
        }
        if locked(&self.containers).len() >= CONTAINERS_MAX {
            return Err(CallError::Exhausted(format!("there are {CONTAINERS_MAX} containers; remove finished ones")));
        }
        let (image, volumes) = self.images_of(&config)?;
        let id = new_id()?;
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        let record = ContainerRecord {
            id: id.clone(),
            pod_id: pod.id.clone(),
            image_id: image.id.to_string(),
            image_ref: self.image_ref(&image).await,
            created_at: now(),
            resources: Some(resources),
            config: Some(config),
            ..ContainerRecord::default()
        };
        let images = std::iter::once(image).chain(volumes.into_values()).collect();
        let container = ContainerEntry::new(record.clone(), Arc::clone(pod), images);
        // What cannot be started is better refused now.
        self.translated(&container).await?.command_line().map_err(sampan_runtime::RuntimeError::from)?;
        self.table.put_container(&record)?;
        self.add_container(&container);
        self.tell(&id, ContainerEventType::ContainerCreatedEvent, pod);
        Ok(id)
    }

    /// The image of a container, and those of its volumes by what the request calls them.
    fn images_of(&self, config: &v1::ContainerConfig) -> Result<ImagesOf, CallError> {
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        if name.is_empty() {
            return Err(CallError::Invalid("config.image.image: is empty".to_owned()));
        }
        let image = self.present(name)?;
        let mut volumes = HashMap::new();
        for volume in config.mounts.iter().filter_map(|mount| mount.image.as_ref()).filter(|it| !it.image.is_empty()) {
            volumes.insert(volume.image.clone(), self.present(&volume.image)?);
        }
        Ok((image, volumes))
    }

    /// The container as the runtime starts it, with what it has become by updates.
    async fn translated(&self, container: &ContainerEntry) -> Result<ContainerConfig, CallError> {
        let record = container.record();
        let config = record.config.unwrap_or_default();
        let (image, volumes) = match container.images.first() {
            Some(image) if config.mounts.iter().all(|mount| mount.image.is_none()) => {
                (Arc::clone(image), HashMap::new())
            }
            _ => self.images_of(&config)?,
        };
        let (id, pod) = (container.id.clone(), container.pod.config());
        // Profiles are read from files.
        let translated = tokio::task::spawn_blocking(move || {
            translate::container_config(&Sources {
                id: &id,
                config: &config,
                pod: &pod,
                resources: &record.resources.unwrap_or_default(),
                image,
                volumes: &volumes,
            })
        });
        translated.await.map_err(|_panic| CallError::Broken)?
    }

    /// Starts a container. One that runs already is no failure.
    pub(crate) async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let container = self.container(id)?;
        let engine = Arc::clone(self);
        let key = format!("start {}", container.id);
        self.once(key, async move { engine.start(&container).await }).await.map(drop)
    }

    async fn start(self: Arc<Self>, container: &Arc<ContainerEntry>) -> Result<String, CallError> {
        match container.phase() {
            Phase::Created => {}
            Phase::Running => return Ok(String::new()),
            Phase::Exited => {
                let why = format!("container {} has exited; create another one", container.id);
                return Err(CallError::NotNow(why));
            }
        }
        let live = container.pod.ready()?;
        let started = async {
            let config = self.translated(container).await?;
            Ok::<_, CallError>(live.run_container(&config, &self.images, &Timeline::default()).await?)
        };
        match started.await {
            Ok(started) => {
                let user = user_of(started.pid);
                container.pid.store(started.pid, Ordering::Relaxed);
                self.change(container, |record| {
                    // A short life may be over before we hear that it began.
                    if record.phase() == Phase::Created {
                        record.set_phase(Phase::Running);
                        record.started_at = nanoseconds(started.at);
                    }
                    record.user = user;
                })?;
                self.tell(&container.id, ContainerEventType::ContainerStartedEvent, &container.pod);
                if container.pod.live().is_none() {
                    // It ended meanwhile, and nobody else tells.
                    self.note_lost(container, "its pod was stopped while it began")?;
                }
                Ok(String::new())
            }
            Err(error) => {
                let why = ErrorChain(&error).to_string();
                self.change(container, |record| {
                    record.started_at = now();
                    record.end(START_FAILED, "StartError", &why, now());
                })?;
                self.tell(&container.id, ContainerEventType::ContainerStoppedEvent, &container.pod);
                Err(error)
            }
        }
    }
}

/// Who a process is in its own user namespace. A process that has ended is nobody.
pub(super) fn user_of(pid: u32) -> Option<LinuxContainerUser> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let status = read("status")?;
    let (uids, gids) = (read("uid_map")?, read("gid_map")?);
    parse_user(&status, &uids, &gids)
}

fn parse_user(status: &str, uids: &str, gids: &str) -> Option<LinuxContainerUser> {
    let numbers = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().filter_map(|word| word.parse::<i64>().ok()).collect::<Vec<_>>())
    };
    let uid = inside(*numbers("Uid:")?.get(1)?, uids)?;
    let gid = inside(*numbers("Gid:")?.get(1)?, gids)?;
    let mut groups: Vec<i64> = numbers("Groups:")?.into_iter().filter_map(|group| inside(group, gids)).collect();
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Some(LinuxContainerUser { uid, gid, supplemental_groups: groups })
}

/// A host's id as a user namespace knows it, by its map (user_namespaces(7)): inside, outside, length.
fn inside(id: i64, map: &str) -> Option<i64> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<i64>().ok());
        let (first, outside, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
        (outside..outside.checked_add(length)?).contains(&id).then(|| first + (id - outside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_as_the_container_knows_them() {
        let status = "Name:\tsh\nUid:\t71000\t71000\t71000\t71000\nGid:\t71000\t71000\t71000\t71000\nGroups:\t71234 \n";
        let map = "         0      70000      65536\n";
        let user = parse_user(status, map, map).unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 1234]));
        let all = "         0          0 4294967295\n";
        assert_eq!(parse_user(status, all, all).unwrap().uid, 71000);
        assert_eq!(parse_user("Uid:\t1\n", map, map), None);
    }
}
