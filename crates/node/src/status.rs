//! `status` of a Pod, from what its lifecycle knows; and back again after a restart of the service.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::lifecycle::{Exit, Lifecycle, Phase, Role, Slot, State};
use crate::spec;

/// The kubelet's reason of a container that does not run yet.
const CREATING: &str = "ContainerCreating";

/// What the lifecycle does not know.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The sandbox's id.
    pub sandbox: Option<String>,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// The node's address.
    pub host_ip: String,
    /// When the node took the pod up.
    pub start_time: Option<Timestamp>,
    /// Image ids by container.
    pub image_ids: BTreeMap<String, String>,
    /// What containers may use, by container.
    pub resources: BTreeMap<String, ResourceRequirements>,
    /// Why there is no sandbox: reason and one line.
    pub sandbox_refusal: Option<(String, String)>,
}

/// The whole status.
#[must_use]
pub fn build(pod: &Pod, lifecycle: &Lifecycle, around: &Surroundings, now: Timestamp) -> PodStatus {
    let phase = lifecycle.phase();
    let statuses = |wanted: fn(Role) -> bool| {
        let slots = lifecycle.slots.iter().filter(|slot| wanted(slot.role));
        let list: Vec<_> = slots.map(|slot| container_status(pod, slot, around)).collect();
        (!list.is_empty()).then_some(list)
    };
    let (reason, message) = match (&lifecycle.failure, &around.sandbox_refusal) {
        (Some((reason, message)), _) => (Some(reason.clone()), Some(message.clone())),
        (None, Some((reason, message))) if !phase.is_final() => (Some(reason.clone()), Some(message.clone())),
        _ => (None, None),
    };
    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        reason,
        message,
        conditions: Some(conditions(pod, lifecycle, phase, now)),
        container_statuses: statuses(|role| role == Role::Main),
        init_container_statuses: statuses(|role| matches!(role, Role::Init | Role::Sidecar)),
        ephemeral_container_statuses: statuses(|role| role == Role::Ephemeral),
        pod_ip: around.pod_ips.first().cloned(),
        pod_ips: (!around.pod_ips.is_empty())
            .then(|| around.pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        host_ip: Some(around.host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: around.host_ip.clone() }]),
        start_time: around.start_time.map(Time),
        qos_class: Some(qos_class(pod).to_owned()),
        ..PodStatus::default()
    }
}

fn container_status(pod: &Pod, slot: &Slot, around: &Surroundings) -> ContainerStatus {
    let image = pod.spec.as_ref().and_then(|spec| spec::find(spec, &slot.name)?.image);
    let id =
        |attempt: u32| around.sandbox.as_ref().map(|sandbox| format!("sampan://{sandbox}/{}/{attempt}", slot.name));
    let finished_well = slot.role == Role::Init && slot.exit().is_some_and(|exit| exit.code == 0);
    ContainerStatus {
        name: slot.name.clone(),
        image: image.unwrap_or_default(),
        image_id: around.image_ids.get(&slot.name).cloned().unwrap_or_default(),
        container_id: if slot.ever_started { id(slot.restarts) } else { None },
        ready: slot.is_ready() || finished_well,
        started: Some(slot.is_started()),
        resources: around.resources.get(&slot.name).cloned(),
        allocated_resources: around.resources.get(&slot.name).and_then(|resources| resources.requests.clone()),
        restart_count: i32::try_from(slot.restarts).unwrap_or(i32::MAX),
        state: Some(state(slot, around)),
        last_state: match &slot.state {
            State::Exited(_) => None,
            _ => slot.last_exit.as_ref().map(|exit| terminated(exit, id(slot.restarts.saturating_sub(1)))),
        },
        ..ContainerStatus::default()
    }
}

fn state(slot: &Slot, around: &Surroundings) -> ContainerState {
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    match &slot.state {
        State::Fresh | State::Starting => match &around.sandbox_refusal {
            Some((_, message)) => waiting(CREATING, Some(message.clone())),
            None if slot.role == Role::Main && slot.state == State::Fresh => waiting("PodInitializing", None),
            None => waiting(CREATING, None),
        },
        State::Waiting { reason, message, .. } => waiting(reason, Some(message.clone())),
        // As the kubelet has it: what has to be done first belongs to the start.
        State::Running { .. } if slot.is_hook_pending() => waiting(CREATING, None),
        State::Running { since } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
            ..ContainerState::default()
        },
        State::Exited(exit) => {
            let id =
                around.sandbox.as_ref().map(|sandbox| format!("sampan://{sandbox}/{}/{}", slot.name, slot.restarts));
            terminated(exit, id)
        }
    }
}

fn terminated(exit: &Exit, container_id: Option<String>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: exit.code,
            signal: exit.signal,
            reason: Some(exit.reason.clone()),
            message: (!exit.message.is_empty()).then(|| exit.message.clone()),
            started_at: exit.started_at.map(Time),
            finished_at: Some(Time(exit.finished_at)),
            container_id,
        }),
        ..ContainerState::default()
    }
}

/// The pod's conditions; a transition time moves only when the value does.
fn conditions(pod: &Pod, lifecycle: &Lifecycle, phase: Phase, now: Timestamp) -> Vec<PodCondition> {
    let old = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let initialized = lifecycle.slots.iter().all(|slot| match slot.role {
        Role::Init => slot.exit().is_some_and(|exit| exit.code == 0),
        Role::Sidecar => slot.is_started() || phase.is_final(),
        Role::Main | Role::Ephemeral => true,
    });
    let mut lasting = lifecycle.slots.iter().filter(|slot| matches!(slot.role, Role::Main | Role::Sidecar));
    let containers_ready = phase == Phase::Running && lasting.all(Slot::is_ready);
    // What others vouch for (`readinessGates`) stands in the conditions that they have written.
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let vouched = |type_: &str| old.iter().any(|condition| condition.type_ == type_ && condition.status == "True");
    let gated = gates.map(|gate| gate.condition_type.as_str()).any(|type_| !vouched(type_));
    let ready = containers_ready && !gated;
    let completed = if phase == Phase::Succeeded { Some("PodCompleted") } else { None };
    let not_ready = completed.or(if phase == Phase::Failed { Some("PodFailed") } else { Some("ContainersNotReady") });
    let values = [
        ("PodScheduled", true, None),
        ("Initialized", initialized, completed.or(Some("ContainersNotInitialized"))),
        ("ContainersReady", containers_ready, not_ready),
        ("Ready", ready, if containers_ready { Some("ReadinessGatesNotReady") } else { not_ready }),
    ];
    let condition = |(type_, is_true, reason): (&str, bool, Option<&str>)| {
        let status = if is_true { "True" } else { "False" };
        let before = old.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: if is_true { None } else { reason.map(str::to_owned) },
            last_transition_time: before.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now))),
            ..PodCondition::default()
        }
    };
    let others = old.iter().filter(|one| !values.iter().any(|(type_, ..)| one.type_ == *type_)).cloned();
    values.into_iter().map(condition).chain(others).collect()
}

/// Whether a container was started and ready by what is stored of it.
pub(crate) fn health(status: Option<&PodStatus>, container: &str) -> (bool, bool) {
    let all = status.into_iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        status.container_statuses.iter().flatten().chain(init)
    });
    let known = all.into_iter().find(|known| known.name == container);
    known.map_or((false, false), |known| (known.started == Some(true), known.ready))
}

/// `Guaranteed`, `Burstable` or `BestEffort`, as Kubernetes computes it.
fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let mut any = false;
    let mut guaranteed = true;
    for (_, container) in spec::containers(spec) {
        let resources = container.resources.clone().unwrap_or_default();
        let (limits, requests) = (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
        for name in ["cpu", "memory"] {
            any |= limits.contains_key(name) || requests.contains_key(name);
            let limit = limits.get(name);
            guaranteed &= limit.is_some() && requests.get(name).is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Gives slots back what the stored status knows: restarts and how runs ended. What is still running is told by the
/// agent, not by this.
pub fn restore(slots: &mut [Slot], status: &PodStatus) {
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    for known in all.chain(status.ephemeral_container_statuses.iter().flatten()) {
        let Some(slot) = slots.iter_mut().find(|slot| slot.name == known.name) else { continue };
        slot.restarts = u32::try_from(known.restart_count).unwrap_or(0);
        slot.ever_started = known.container_id.is_some();
        let exit_of = |state: &Option<ContainerState>| state.as_ref()?.terminated.as_ref().map(exit);
        if let Some(ended) = exit_of(&known.state) {
            slot.last_exit = Some(ended.clone());
            slot.state = State::Exited(ended);
        } else {
            slot.last_exit = exit_of(&known.last_state);
            if let Some(running) = known.state.as_ref().and_then(|state| state.running.as_ref()) {
                slot.state =
                    State::Running { since: running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0) };
            } else if was_starting(slot, known) {
                slot.state = State::Starting;
            }
        }
    }
}

/// The run that the status names had been asked for, and nobody wrote what came of it. What an init container that is to run again
/// looks like is the same.
fn was_starting(slot: &Slot, known: &ContainerStatus) -> bool {
    let waiting = known.state.as_ref().and_then(|state| state.waiting.as_ref());
    let creating = waiting.and_then(|waiting| waiting.reason.as_deref()) == Some(CREATING);
    creating && slot.ever_started && (slot.role != Role::Init || slot.last_exit.is_none())
}

fn exit(terminated: &ContainerStateTerminated) -> Exit {
    Exit {
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone().unwrap_or_default(),
        started_at: terminated.started_at.as_ref().map(|at| at.0),
        finished_at: terminated.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{Surroundings, build, restore};
    use crate::lifecycle::{Exit, Lifecycle, RestartPolicy, State};
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn what_is_stored_is_restored() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "m", "image": "x"}]},
        }))
        .unwrap();
        let slots = crate::spec::slots(pod.spec.as_ref().unwrap());
        let mut lifecycle = Lifecycle::new(RestartPolicy::Always, slots.clone(), Duration::from_secs(1));
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let exit = |code| Exit {
            code,
            signal: None,
            reason: "Error".into(),
            message: String::new(),
            started_at: Some(at(1)),
            finished_at: at(2),
        };
        lifecycle.starting(0);
        lifecycle.exited(0, exit(0));
        lifecycle.starting(1);
        lifecycle.exited(1, exit(9));
        lifecycle.starting(1);
        lifecycle.started(1, at(3));
        let around = Surroundings { sandbox: Some("abc".into()), ..Surroundings::default() };
        let status = build(&pod, &lifecycle, &around, at(4));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        let mut restored = slots;
        restore(&mut restored, &status);
        assert_eq!(restored[0].exit().map(|exit| exit.code), Some(0));
        assert_eq!(restored[1].state, State::Running { since: at(3) });
        assert_eq!((restored[1].restarts, restored[1].last_exit.as_ref().map(|exit| exit.code)), (1, Some(9)));
    }
    /// A service that dies between a start and its note must neither count that run twice nor forget it.
    #[test]
    fn a_run_that_was_on_its_way_keeps_its_number() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a"}, "spec": {"containers": [{"name": "m", "image": "x"}]},
        }))
        .unwrap();
        let slots = crate::spec::slots(pod.spec.as_ref().unwrap());
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let around = Surroundings { sandbox: Some("abc".into()), ..Surroundings::default() };
        for restarts in 0..2 {
            let mut before = Lifecycle::new(RestartPolicy::Always, slots.clone(), Duration::from_secs(1));
            for _ in 0..=restarts {
                before.starting(0);
            }
            let status = build(&pod, &before, &around, at(4));
            let restored = || {
                let mut restored = slots.clone();
                restore(&mut restored, &status);
                Lifecycle::new(RestartPolicy::Always, restored, Duration::from_secs(1))
            };
            let mut runs = restored();
            assert_eq!((&runs.slots[0].state, runs.slots[0].restarts), (&State::Starting, restarts));
            runs.resumed(0, at(5), false, false);
            assert_eq!((&runs.slots[0].state, runs.slots[0].restarts), (&State::Running { since: at(5) }, restarts));
            // Nothing came of it: the next run has its number.
            let mut nothing = restored();
            nothing.unstarted(0);
            assert_eq!(nothing.slots[0].state, State::Fresh);
            nothing.starting(0);
            assert_eq!(nothing.slots[0].restarts, restarts);
        }
    }
}
