//! Binds pods to nodes at the moment of their creation, and the waiting ones when room appears.
//!
//! # Invariants
//! All reservations are in one place behind one lock; a pod counts from its admission until its end is stored. A
//! creation that fails gives its reservation back. So the sum of what is bound never exceeds a node's allocatable.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use sampan_apiserver::{Admission, AdmissionRequest, ApiError, Fault, Operation};
use sampan_kit::error_chain::ErrorChain;
use sampan_placement::{Amounts, Decision, Demand, Node, place};
use sampan_store::{Change, Key, Store, StoreError};
use serde_json::{Value, json};

const TIMELINE_ANNOTATION: &str = "sampan.dev/timeline";

/// The scheduler of a single server.
#[derive(Debug, Clone)]
pub struct Scheduler {
    store: Store,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    /// By `namespace/name`. A name may pass to a younger pod before the older one's end is heard of: the uid tells.
    booked: HashMap<String, Booking>,
    /// What pods held that are about to hold another amount, until that is stored.
    resizing: HashMap<String, Booking>,
    /// Pods that found no room, oldest first.
    waiting: Vec<Key>,
}

/// Where a pod is booked, and for how much.
#[derive(Debug)]
struct Booking {
    uid: String,
    node: String,
    amounts: Amounts,
}

impl State {
    fn snapshot(&self) -> Vec<Node> {
        self.nodes.values().cloned().collect()
    }

    fn book(&mut self, pod: String, booking: Booking) {
        self.release(&pod, None);
        if let Some(node) = self.nodes.get_mut(&booking.node) {
            node.reserved = node.reserved.plus(booking.amounts);
        }
        self.booked.insert(pod, booking);
    }

    /// Gives back what a pod holds; with a uid only if it is that very pod. True when there was something.
    fn release(&mut self, pod: &str, uid: Option<&str>) -> bool {
        if self.booked.get(pod).is_none_or(|booking| uid.is_some_and(|uid| uid != booking.uid)) {
            return false;
        }
        let Some(booking) = self.booked.remove(pod) else { return false };
        if let Some(node) = self.nodes.get_mut(&booking.node) {
            node.reserved = node.reserved.minus(booking.amounts);
        }
        true
    }

    fn set_node(&mut self, mut node: Node) {
        let here = self.booked.values().filter(|booking| booking.node == node.name);
        node.reserved = here.fold(Amounts::default(), |sum, booking| sum.plus(booking.amounts));
        self.nodes.insert(node.name.clone(), node);
    }
}

impl Scheduler {
    /// Reads nodes and pods, so that what is bound already counts.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let scheduler = Self { store, state: Arc::default() };
        scheduler.reload().await?;
        Ok(scheduler)
    }

    async fn reload(&self) -> Result<u64, StoreError> {
        let (nodes, _) = self.store.list("nodes", None).await?;
        let (pods, revision) = self.store.list("pods", None).await?;
        let mut state = self.lock();
        let kept = std::mem::take(&mut *state);
        state.booked = kept.booked;
        for object in nodes {
            take_node(&mut state, &object.value);
        }
        for object in pods {
            take_pod(&mut state, &object.key, &object.value);
        }
        Ok(revision)
    }

    /// Follows nodes and pods until the store closes; binds waiting pods when something changes in their favour.
    pub async fn run(self) -> Result<(), StoreError> {
        loop {
            let revision = self.reload().await?;
            self.retry_waiting().await;
            let watches = self
                .store
                .watch("pods", None, revision)
                .and_then(|pods| self.store.watch("nodes", None, revision).map(|nodes| (pods, nodes)));
            let (mut pods, mut nodes) = match watches {
                Ok(watches) => watches,
                Err(StoreError::Closed) => return Ok(()),
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "pods and nodes cannot be watched from here; reading them again");
                    continue;
                }
            };
            loop {
                let (event, is_pod) = tokio::select! {
                    event = pods.next() => (event, true),
                    event = nodes.next() => (event, false),
                };
                let event = match event {
                    Ok(event) => event,
                    Err(StoreError::Closed) => return Ok(()),
                    Err(error) => {
                        tracing::warn!(error = %ErrorChain(&error), "a watch broke; reading pods and nodes again");
                        break;
                    }
                };
                let room_appeared = {
                    let mut state = self.lock();
                    match (is_pod, event.kind) {
                        (true, Change::Deleted) => {
                            state.waiting.retain(|key| *key != event.object.key);
                            state.release(&pod_name(&event.object.key), Some(uid_of(&event.object.value)))
                        }
                        (true, _) => take_pod(&mut state, &event.object.key, &event.object.value),
                        (false, Change::Deleted) => state.nodes.remove(&event.object.key.name).is_none(),
                        (false, _) => take_node(&mut state, &event.object.value),
                    }
                };
                if room_appeared {
                    self.retry_waiting().await;
                }
            }
        }
    }

    /// Tries every waiting pod once more.
    async fn retry_waiting(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for key in waiting {
            if let Err(error) = self.bind(&key).await {
                tracing::warn!(pod = %key, error = %ErrorChain(&error), "a waiting pod cannot be bound");
            }
        }
    }

    async fn bind(&self, key: &Key) -> Result<(), StoreError> {
        loop {
            let Some(object) = self.store.get(key).await? else { return Ok(()) };
            if self.lock().booked.get(&pod_name(key)).is_some_and(|booking| booking.uid == uid_of(&object.value)) {
                // Somebody else binds it at this moment; how that ends is heard of by the watch.
                return Ok(());
            }
            let mut value = object.value.clone();
            if value.pointer("/spec/nodeName").is_some_and(Value::is_string) {
                return Ok(());
            }
            let bound = self.decide(&pod_name(key), &mut value, false);
            if !bound && refusal_reason(&value) == refusal_reason(&object.value) {
                self.lock().waiting.push(key.clone());
                return Ok(());
            }
            match self.store.update(key, Some(object.revision), value).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {
                    if bound {
                        self.lock().release(&pod_name(key), None);
                    }
                }
                Err(error) => {
                    if bound {
                        self.lock().release(&pod_name(key), None);
                    }
                    return if matches!(error, StoreError::NotFound(_)) { Ok(()) } else { Err(error) };
                }
            }
        }
    }

    /// Binds the pod or says in its status why not; true when a reservation was made.
    fn decide(&self, pod: &str, value: &mut Value, dry_run: bool) -> bool {
        let (start, clock) = (Timestamp::now(), Instant::now());
        let demand = sampan_placement::demand(value).unwrap_or_default();
        let mut state = self.lock();
        let decision = place(&state.snapshot(), &demand);
        match decision {
            Decision::Bind(node) => {
                if !dry_run {
                    let uid = uid_of(value).to_owned();
                    state.book(pod.to_owned(), Booking { uid, node: node.clone(), amounts: demand.amounts });
                }
                drop(state);
                write_binding(value, &node, start, clock.elapsed().as_secs_f64() * 1000.0);
                !dry_run
            }
            Decision::Wait(reason) => {
                drop(state);
                write_refusal(value, &reason, start);
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Admission for Scheduler {
    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), ApiError> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(namespace) = request.namespace else { return Ok(()) };
        let pod = format!("{namespace}/{}", request.name);
        if request.subresource == Some("resize") {
            return self.resize(&pod, request, object);
        }
        if request.subresource == Some("binding") && self.lock().booked.contains_key(&pod) {
            return Err(ApiError::conflict("pods/binding", request.name, "the pod is being bound by the scheduler"));
        }
        match object.pointer("/spec/nodeName").and_then(Value::as_str) {
            Some(node) => {
                let demand = sampan_placement::demand(object).unwrap_or_default();
                let mut state = self.lock();
                check_chosen(&state, request.name, node, &demand)?;
                if !request.dry_run {
                    let (uid, node) = (uid_of(object).to_owned(), node.to_owned());
                    state.book(pod, Booking { uid, node, amounts: demand.amounts });
                }
            }
            None => {
                self.decide(&pod, object, request.dry_run);
            }
        }
        Ok(())
    }

    async fn settled(&self, request: &AdmissionRequest<'_>, committed: bool) {
        let Some(namespace) = request.namespace.filter(|_| concerns(request) && !request.dry_run) else { return };
        let pod = format!("{namespace}/{}", request.name);
        let mut state = self.lock();
        if request.subresource == Some("resize") {
            let before = state.resizing.remove(&pod);
            if let Some(before) = before.filter(|_| !committed) {
                state.book(pod, before);
            }
        } else if !committed {
            state.release(&pod, None);
        } else if request.subresource == Some("binding") {
            state.waiting.retain(|key| pod_name(key) != pod);
        }
    }
}

impl Scheduler {
    /// Books another amount for a pod where it is, if there is room beside all others.
    fn resize(&self, pod: &str, request: &AdmissionRequest<'_>, object: &Value) -> Result<(), ApiError> {
        let demand = sampan_placement::demand(object).unwrap_or_default();
        let mut state = self.lock();
        let Some(before) = state.booked.remove(pod) else { return Ok(()) };
        let node = before.node.clone();
        let room = state.nodes.get(&node).cloned().map(|mut node| {
            node.reserved = node.reserved.minus(before.amounts);
            node.schedulable = true;
            node
        });
        let decision = room.map_or(Decision::Bind(node.clone()), |room| place(&[room], &demand));
        // Put back first: `book` counts what was booked before.
        let kept = Booking { uid: before.uid.clone(), node: node.clone(), amounts: before.amounts };
        state.booked.insert(pod.to_owned(), before);
        if let Decision::Wait(why) = decision {
            let why = format!("Node didn't have enough resource: {}", why.trim_end_matches('.'));
            return Err(ApiError::invalid("Pod", request.name, &[Fault::forbidden("spec.containers", &why)]));
        }
        if !request.dry_run {
            let uid = kept.uid.clone();
            state.book(pod.to_owned(), Booking { uid, node, amounts: demand.amounts });
            state.resizing.insert(pod.to_owned(), kept);
        }
        Ok(())
    }
}

/// What changes how much is booked: a new pod, a pod bound by hand, and one that is to have more or less.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    let books = match request.operation {
        Operation::Create => request.subresource.is_none(),
        Operation::Update => matches!(request.subresource, Some("binding" | "resize")),
        Operation::Delete => false,
    };
    books && request.resource == "pods"
}

/// A user may choose the node, but neither one that nobody serves, where the pod would stay for ever, nor one that is full.
fn check_chosen(state: &State, pod: &str, node: &str, demand: &Demand) -> Result<(), ApiError> {
    let refuse = |why: String| {
        ApiError::invalid(
            "Pod",
            pod,
            &[Fault::invalid("spec.nodeName", &node.into(), format_args!("{why}; leave it out"))],
        )
    };
    let chosen = state.nodes.get(node).ok_or_else(|| refuse("there is no such node".to_owned()))?;
    match place(std::slice::from_ref(chosen), demand) {
        Decision::Bind(_) => Ok(()),
        Decision::Wait(why) => Err(refuse(why.trim_end_matches('.').to_owned())),
    }
}

fn uid_of(pod: &Value) -> &str {
    pod.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
}

fn pod_name(key: &Key) -> String {
    format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), key.name)
}

/// Books, releases or queues a pod by what is stored of it; true when room appeared.
fn take_pod(state: &mut State, key: &Key, pod: &Value) -> bool {
    let name = pod_name(key);
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return state.release(&name, Some(uid_of(pod)));
    }
    let demand = sampan_placement::demand(pod).unwrap_or_else(|error| {
        tracing::error!(pod = name, %error, "a stored pod asks for an unreadable quantity; it counts as nothing");
        Demand::default()
    });
    match pod.pointer("/spec/nodeName").and_then(Value::as_str) {
        // What is heard of an older pod must not push out its namesake, which admission has booked already.
        Some(_) if state.resizing.contains_key(&name) => {}
        Some(node) if state.booked.get(&name).is_none_or(|booking| booking.uid == uid_of(pod)) => {
            let (uid, node) = (uid_of(pod).to_owned(), node.to_owned());
            state.book(name, Booking { uid, node, amounts: demand.amounts });
        }
        None if !state.waiting.contains(key) => state.waiting.push(key.clone()),
        Some(_) | None => {}
    }
    false
}

fn take_node(state: &mut State, object: &Value) -> bool {
    match sampan_placement::node(object) {
        Ok(node) => {
            state.set_node(node);
            true
        }
        Err(error) => {
            tracing::error!(%error, "a stored node has an unreadable quantity; it is left out");
            false
        }
    }
}

fn write_binding(pod: &mut Value, node: &str, start: Timestamp, ms: f64) {
    let phases = json!([{"phase": "scheduled", "start": start, "ms": (ms * 1000.0).round() / 1000.0}]);
    set(pod, "spec", "nodeName", node.into());
    let condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": format!("{start:.0}")});
    set(pod, "status", "conditions", json!([condition]));
    if let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(TIMELINE_ANNOTATION.to_owned(), phases.to_string().into());
        }
    }
}

fn write_refusal(pod: &mut Value, reason: &str, start: Timestamp) {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason,
        "lastTransitionTime": format!("{start:.0}"),
    });
    set(pod, "status", "conditions", json!([condition]));
}

fn refusal_reason(pod: &Value) -> Option<&Value> {
    pod.pointer("/status/conditions/0/message")
}

fn set(object: &mut Value, part: &str, field: &str, value: Value) {
    let Some(fields) = object.as_object_mut() else { return };
    let part = fields.entry(part).or_insert_with(|| json!({}));
    if let Some(part) = part.as_object_mut() {
        part.insert(field.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::Scheduler;
    use sampan_apiserver::{Admission, AdmissionRequest, Operation};
    use sampan_store::{Key, Store};
    use serde_json::{Value, json};

    fn pod(name: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": [
            {"name": "main", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn create<'a>(name: &'a str) -> AdmissionRequest<'a> {
        AdmissionRequest {
            operation: Operation::Create,
            resource: "pods",
            subresource: None,
            namespace: Some("default"),
            name,
            old: None,
            dry_run: false,
        }
    }

    async fn server() -> (tempfile::TempDir, Store, Scheduler) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        let node = json!({"metadata": {"name": "n1"}, "status": {
            "allocatable": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "10Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        store.create(Key::cluster("nodes", "n1"), node).await.unwrap();
        let scheduler = Scheduler::open(store.clone()).await.unwrap();
        (folder, store, scheduler)
    }

    #[tokio::test]
    async fn a_pod_is_bound_when_admitted_and_a_failed_creation_gives_back() {
        let (_folder, _store, scheduler) = server().await;
        let mut first = pod("a", "1500m");
        scheduler.admit(&create("a"), &mut first).await.unwrap();
        assert_eq!(first["spec"]["nodeName"], "n1");
        let mut second = pod("b", "1");
        scheduler.admit(&create("b"), &mut second).await.unwrap();
        assert_eq!(second["spec"].get("nodeName"), None);
        assert_eq!(second["status"]["conditions"][0]["message"], "0/1 nodes are available: 1 Insufficient cpu.");
        scheduler.settled(&create("a"), false).await;
        scheduler.admit(&create("b"), &mut second).await.unwrap();
        assert_eq!(second["spec"]["nodeName"], "n1");
    }

    #[tokio::test]
    async fn a_chosen_node_must_be_there_and_have_room() {
        let (_folder, _store, scheduler) = server().await;
        for (name, node, cpu, good) in [("a", "n2", "1", false), ("b", "n1", "3", false), ("c", "n1", "2", true)] {
            let mut value = pod(name, cpu);
            value["spec"]["nodeName"] = node.into();
            assert_eq!(scheduler.admit(&create(name), &mut value).await.is_ok(), good, "{name}");
        }
    }

    fn change<'a>(name: &'a str, subresource: &'static str) -> AdmissionRequest<'a> {
        AdmissionRequest { operation: Operation::Update, subresource: Some(subresource), ..create(name) }
    }

    #[tokio::test]
    async fn who_binds_by_hand_is_held_to_the_same_room() {
        let (_folder, _store, scheduler) = server().await;
        scheduler.admit(&create("a"), &mut pod("a", "1500m")).await.unwrap();
        let mut bound = pod("b", "1");
        bound["spec"]["nodeName"] = "n1".into();
        assert!(scheduler.admit(&change("b", "binding"), &mut bound).await.is_err());
        scheduler.settled(&create("a"), false).await;
        scheduler.admit(&change("b", "binding"), &mut bound).await.unwrap();
        assert!(scheduler.admit(&create("a"), &mut pod("a", "1500m")).await.is_ok());
        assert!(!scheduler.lock().booked.contains_key("default/a"), "there is room for one only");
        scheduler.settled(&change("b", "binding"), false).await;
        scheduler.admit(&create("a"), &mut pod("a", "1500m")).await.unwrap();
        assert!(scheduler.lock().booked.contains_key("default/a"));
    }

    #[tokio::test]
    async fn a_resize_is_booked_and_given_back_when_it_is_not_stored() {
        let (_folder, _store, scheduler) = server().await;
        scheduler.admit(&create("a"), &mut pod("a", "500m")).await.unwrap();
        scheduler.admit(&create("b"), &mut pod("b", "1")).await.unwrap();
        let reserved = || scheduler.lock().nodes["n1"].reserved.cpu_millis;
        assert_eq!(reserved(), 1500);
        assert!(scheduler.admit(&change("a", "resize"), &mut pod("a", "1500m")).await.is_err());
        assert_eq!(reserved(), 1500);
        scheduler.admit(&change("a", "resize"), &mut pod("a", "1")).await.unwrap();
        assert_eq!(reserved(), 2000);
        scheduler.settled(&change("a", "resize"), false).await;
        assert_eq!(reserved(), 1500);
        scheduler.admit(&change("a", "resize"), &mut pod("a", "100m")).await.unwrap();
        scheduler.settled(&change("a", "resize"), true).await;
        assert_eq!(reserved(), 1100);
    }

    #[tokio::test]
    async fn an_older_pods_end_does_not_free_what_its_namesake_holds() {
        let (_folder, _store, scheduler) = server().await;
        let mut younger = pod("a", "2");
        younger["metadata"]["uid"] = "younger".into();
        scheduler.admit(&create("a"), &mut younger).await.unwrap();
        assert!(!scheduler.lock().release("default/a", Some("older")));
        assert!(scheduler.lock().release("default/a", Some("younger")));
    }

    #[tokio::test]
    async fn a_waiting_pod_is_bound_when_another_ends() {
        let (_folder, store, scheduler) = server().await;
        for (name, cpu) in [("a", "2"), ("b", "2")] {
            let mut value = pod(name, cpu);
            scheduler.admit(&create(name), &mut value).await.unwrap();
            store.create(Key::namespaced("pods", "default", name), value).await.unwrap();
        }
        let task = tokio::spawn(scheduler.run());
        let key = Key::namespaced("pods", "default", "a");
        let mut ended = store.get(&key).await.unwrap().unwrap().value.clone();
        ended["status"]["phase"] = "Succeeded".into();
        let revision = store.update(&key, None, ended).await.unwrap().revision;
        let mut watch = store.watch("pods", None, revision).unwrap();
        let event = watch.next().await.unwrap();
        assert_eq!((event.object.key.name.as_str(), &event.object.value["spec"]["nodeName"]), ("b", &json!("n1")));
        task.abort();
    }
}
