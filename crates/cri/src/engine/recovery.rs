//! Taking up what a daemon before this one left running.
//!
//! What the table calls ready and the journal knows is adopted, many pods at once; what has ended meanwhile is told by the
//! agents, which kept it; what neither knows any more (the machine was restarted) has ended without anybody seeing it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sampan_image::{ProgressSender, PullPolicy};
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::journal::SandboxRow;
use sampan_runtime::pod::Pod;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{ContainerEntry, Engine, PodEntry, nanoseconds};
use crate::error::CallError;
use crate::limits::ADOPTIONS_AT_ONCE;
use crate::records::{ContainerRecord, Phase, PodRecord};
use crate::translate;

/// Why a container is over whose end nobody saw.
const NOBODY_SAW: &str = "its end was not seen: the machine or the pod's agent ended while the service did not run";

impl Engine {
    /// Reads the table and takes up every pod. `rows` are all sandboxes that the journal knows as complete.
    pub(crate) async fn recover(self: &Arc<Self>, rows: Vec<SandboxRow>) -> Result<(), CallError> {
        let (pods, containers) = self.table.load()?;
        let ours = rows.into_iter().filter(SandboxRow::is_cri);
        let mut rows: HashMap<String, SandboxRow> = ours.map(|row| (row.pod_uid.clone(), row)).collect();
        let mut by_pod: HashMap<String, Vec<ContainerRecord>> = HashMap::new();
        for container in containers {
            by_pod.entry(container.pod_id.clone()).or_default().push(container);
        }
        // As many as there are pods would only make as many threads, which wait for each other.
        let turns = Arc::new(Semaphore::new(ADOPTIONS_AT_ONCE));
        let mut adoptions = JoinSet::new();
        for record in pods {
            let row = rows.remove(&translate::pod_uid(&record.id));
            let containers = by_pod.remove(&record.id).unwrap_or_default();
            let (engine, turns) = (Arc::clone(self), Arc::clone(&turns));
            adoptions.spawn(async move {
                // Nobody closes it.
                let _turn = turns.acquire().await;
                engine.take_up(record, row, containers).await
            });
        }
        while let Some(adopted) = adoptions.join_next().await {
            adopted.map_err(|_panic| CallError::Broken)??;
        }
        let orphans: HashSet<String> = by_pod.into_values().flatten().map(|container| container.id).collect();
        for id in orphans {
            self.table.remove_container(&id)?;
        }
        for row in rows.into_values() {
            tracing::info!(sandbox = row.id, pod = row.pod_name, "removing a sandbox that no caller ever heard of");
            if let Err(error) = self.runtime.remove_row(&row).await {
                tracing::error!(sandbox = row.id, error = %ErrorChain(&error),
                    "a sandbox is not wholly removed; the next start of the service tries again");
            }
        }
        Ok(())
    }

    async fn take_up(
        self: Arc<Self>,
        record: PodRecord,
        row: Option<SandboxRow>,
        mut containers: Vec<ContainerRecord>,
    ) -> Result<(), CallError> {
        let live = match row {
            Some(row) => self.adopt(&record, row).await,
            None => None,
        };
        let was_ready = record.ready;
        let record = PodRecord { ready: live.is_some(), ..record };
        if was_ready != record.ready {
            self.table.put_pod(&record)?;
        }
        let pod = PodEntry::new(record, live.clone());
        self.add_pod(&pod);
        containers.sort_by_key(|record| record.created_at);
        for record in containers {
            let mut images = Vec::new();
            // Kept from being removed as long as the container is there; one that is missing is missed at the start.
            let held = self.images.ensure(&record.image_id, PullPolicy::Never, ProgressSender::none()).await;
            images.extend(held.ok());
            self.add_container(&ContainerEntry::new(record, Arc::clone(&pod), images));
        }
        self.settle(&pod, live).await
    }

    /// A pod of the last daemon; one that cannot be had is taken away.
    async fn adopt(&self, record: &PodRecord, row: SandboxRow) -> Option<Arc<Pod>> {
        let config = translate::pod_config(&record.id, record.config.as_ref()?);
        let adopted = match (record.ready, config) {
            (true, Ok(config)) => self.runtime.adopt(row.clone(), config).await.map_err(CallError::from),
            (false, _) => Err(CallError::NotNow("it was being stopped".to_owned())),
            (true, Err(error)) => Err(error),
        };
        match adopted {
            Ok(live) => Some(Arc::new(live)),
            Err(error) => {
                tracing::warn!(pod = record.id, error = %ErrorChain(&error), "a pod cannot be taken up; removing its sandbox");
                if let Err(error) = self.runtime.remove_row(&row).await {
                    tracing::error!(pod = record.id, error = %ErrorChain(&error),
                        "a sandbox is not wholly removed; the next start of the service tries again");
                }
                None
            }
        }
    }

    /// Brings the containers' records up to what their agent says, and follows it.
    async fn settle(self: &Arc<Self>, pod: &Arc<PodEntry>, live: Option<Arc<Pod>>) -> Result<(), CallError> {
        let mut running = HashMap::new();
        if let Some(live) = live {
            let mut events = live.sandbox().events();
            // Every end before its agent said so is told by now.
            running.extend(live.found_containers().iter().cloned());
            while let Ok(event) = events.try_recv() {
                if !self.take(pod, Some(&live), event).await {
                    running.clear();
                }
            }
            self.follow(Arc::clone(pod), &live, events);
        }
        for container in self.containers_of(pod) {
            match (container.phase(), running.get(container.run_name())) {
                (Phase::Running, None) => self.note_lost(&container, NOBODY_SAW)?,
                // The daemon died between the start and its note.
                (Phase::Created, Some(since)) => self.change(&container, |record| {
                    // Its end may have been told meanwhile.
                    if record.phase() == Phase::Created {
                        record.set_phase(Phase::Running);
                        record.started_at = nanoseconds(*since);
                    }
                })?,
                _ => {}
            }
        }
        Ok(())
    }
}
