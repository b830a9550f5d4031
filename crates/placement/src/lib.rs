//! Cluster snapshot and pod in, decision with reasons out.
//!
//! Pure and clockless: whoever calls holds the snapshot still, books the decision before the next question, and so
//! nothing is ever oversold. The wording of refusals is kube-scheduler's, which users and tools know.

use std::collections::BTreeMap;

use sampan_kit::quantity::{Quantity, QuantityError};
use serde_json::Value;

/// Amounts of what can run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the writable layers.
    pub disk_bytes: u64,
    /// Pods.
    pub pods: u64,
}

impl Amounts {
    /// Adds, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// What is left after taking `other` away; never below nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
            pods: self.pods.saturating_sub(other.pods),
        }
    }

    /// The names of what `other` has too little of for this.
    fn lacking(self, other: Self) -> Vec<&'static str> {
        let mut lacking = Vec::new();
        if self.cpu_millis > other.cpu_millis {
            lacking.push("Insufficient cpu");
        }
        if self.memory_bytes > other.memory_bytes {
            lacking.push("Insufficient memory");
        }
        if self.disk_bytes > other.disk_bytes {
            lacking.push("Insufficient ephemeral-storage");
        }
        if self.pods > other.pods {
            lacking.push("Too many pods");
        }
        lacking
    }
}

/// A node, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What pods may reserve in all.
    pub allocatable: Amounts,
    /// What they have reserved.
    pub reserved: Amounts,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It can take new pods.
    pub schedulable: bool,
}

/// What a pod asks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// What it reserves.
    pub amounts: Amounts,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
}

/// Where a pod goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To this node.
    Bind(String),
    /// Nowhere for now, and why, one line.
    Wait(String),
}

/// Chooses the node with the most room left after the pod; ties go to the name that sorts first.
#[must_use]
pub fn place(nodes: &[Node], demand: &Demand) -> Decision {
    let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
    let mut best: Option<(u64, &Node)> = None;
    for node in nodes {
        let reasons = refusal(node, demand);
        if reasons.is_empty() {
            let score = room_after(node, demand);
            let better = best.is_none_or(|(known, chosen)| score > known || score == known && node.name < chosen.name);
            if better {
                best = Some((score, node));
            }
        }
        for reason in reasons {
            *refusals.entry(reason).or_default() += 1;
        }
    }
    if let Some((_, node)) = best {
        return Decision::Bind(node.name.clone());
    }
    let list: Vec<String> = refusals.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let why = if list.is_empty() { "no nodes registered".to_owned() } else { list.join(", ") };
    Decision::Wait(format!("0/{} nodes are available: {why}.", nodes.len()))
}

fn refusal(node: &Node, demand: &Demand) -> Vec<&'static str> {
    if !node.schedulable {
        return vec!["node(s) were unschedulable"];
    }
    if !demand.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value)) {
        return vec!["node(s) didn't match Pod's node affinity/selector"];
    }
    demand.amounts.lacking(node.allocatable.minus(node.reserved))
}

/// The smaller share of CPU and memory that would stay free, in millionths.
fn room_after(node: &Node, demand: &Demand) -> u64 {
    let left = node.allocatable.minus(node.reserved.plus(demand.amounts));
    let share = |left: u64, of: u64| {
        let millionths = u128::from(left) * 1_000_000 / u128::from(of.max(1));
        u64::try_from(millionths).unwrap_or(u64::MAX)
    };
    share(left.cpu_millis, node.allocatable.cpu_millis).min(share(left.memory_bytes, node.allocatable.memory_bytes))
}

/// Reads what a pod reserves: per resource the larger of the main containers' sum and the largest init container,
/// side-cars counting with both; a request left out is the limit.
pub fn demand(pod: &Value) -> Result<Demand, QuantityError> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let list = |name: &str| spec.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut running = Amounts::default();
    let mut peak = Amounts::default();
    for container in list("initContainers") {
        let own = requests(container)?;
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            running = running.plus(own);
        }
        let now = if container.get("restartPolicy").is_some() { running } else { running.plus(own) };
        peak = largest(peak, now);
    }
    for container in list("containers") {
        running = running.plus(requests(container)?);
    }
    let mut amounts = largest(peak, running);
    amounts.pods = 1;
    let selector = spec.get("nodeSelector").and_then(Value::as_object).into_iter().flatten();
    let node_selector = selector.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    Ok(Demand { amounts, node_selector })
}

fn largest(a: Amounts, b: Amounts) -> Amounts {
    Amounts {
        cpu_millis: a.cpu_millis.max(b.cpu_millis),
        memory_bytes: a.memory_bytes.max(b.memory_bytes),
        disk_bytes: a.disk_bytes.max(b.disk_bytes),
        pods: a.pods.max(b.pods),
    }
}

fn requests(container: &Value) -> Result<Amounts, QuantityError> {
    let amount = |name: &str| {
        let resources = container.get("resources")?;
        let requested = resources.get("requests").and_then(|requests| requests.get(name));
        requested.or_else(|| resources.get("limits")?.get(name)).cloned()
    };
    Ok(Amounts {
        cpu_millis: quantity(amount("cpu"), Quantity::millis)?,
        memory_bytes: quantity(amount("memory"), Quantity::units)?,
        disk_bytes: quantity(amount("ephemeral-storage"), Quantity::units)?,
        pods: 0,
    })
}

fn quantity(value: Option<Value>, unit: impl Fn(Quantity) -> i64) -> Result<u64, QuantityError> {
    let text = match value {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        _ => return Ok(0),
    };
    Ok(u64::try_from(unit(Quantity::parse(&text)?)).unwrap_or(0))
}

/// Reads a node's allocatable amounts and labels.
pub fn node(object: &Value) -> Result<Node, QuantityError> {
    let amount = |name: &str| object.pointer("/status/allocatable").and_then(|map| map.get(name)).cloned();
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let conditions =
        object.pointer("/status/conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is = |condition: &Value, key: &str, value: &str| condition.get(key).and_then(Value::as_str) == Some(value);
    let ready = conditions.iter().any(|condition| is(condition, "type", "Ready") && is(condition, "status", "True"));
    let cordoned = object.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true);
    Ok(Node {
        name: object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        allocatable: Amounts {
            cpu_millis: quantity(amount("cpu"), Quantity::millis)?,
            memory_bytes: quantity(amount("memory"), Quantity::units)?,
            disk_bytes: quantity(amount("ephemeral-storage"), Quantity::units)?,
            pods: quantity(amount("pods"), Quantity::units)?,
        },
        reserved: Amounts::default(),
        labels: labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
        schedulable: ready && !cordoned,
    })
}

#[cfg(test)]
mod tests {
    use super::{Amounts, Decision, Demand, Node, demand, place};
    use proptest::prelude::*;
    use serde_json::json;

    fn node(name: &str, cpu_millis: u64) -> Node {
        Node {
            name: name.into(),
            allocatable: Amounts { cpu_millis, memory_bytes: 1 << 30, disk_bytes: 1 << 30, pods: 10 },
            reserved: Amounts::default(),
            labels: [("zone".to_owned(), name.to_owned())].into(),
            schedulable: true,
        }
    }

    fn wants(cpu_millis: u64) -> Demand {
        Demand { amounts: Amounts { cpu_millis, pods: 1, ..Amounts::default() }, ..Demand::default() }
    }

    #[test]
    fn the_emptier_node_wins_and_refusals_say_why() {
        let nodes = [node("a", 1000), node("b", 2000)];
        assert_eq!(place(&nodes, &wants(500)), Decision::Bind("b".into()));
        let refusal = "0/2 nodes are available: 2 Insufficient cpu.";
        assert_eq!(place(&nodes, &wants(5000)), Decision::Wait(refusal.into()));
        let mut picky = wants(1);
        picky.node_selector.insert("zone".into(), "a".into());
        assert_eq!(place(&nodes, &picky), Decision::Bind("a".into()));
        assert_eq!(place(&[], &wants(1)), Decision::Wait("0/0 nodes are available: no nodes registered.".into()));
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let with = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = with("100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {
            "initContainers": [sidecar, with("900m")],
            "containers": [with("200m"), {"resources": {"limits": {"cpu": "0.3", "memory": "1Mi"}}}],
        }});
        let amounts = demand(&pod).unwrap().amounts;
        assert_eq!((amounts.cpu_millis, amounts.memory_bytes, amounts.pods), (1000, 1 << 20, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_ever_oversold(demands in prop::collection::vec(0_u64..3000, 0..60)) {
            let mut nodes = vec![node("a", 4000), node("b", 2000), node("c", 1000)];
            for cpu in demands {
                if let Decision::Bind(name) = place(&nodes, &wants(cpu)) {
                    let chosen = nodes.iter_mut().find(|node| node.name == name).unwrap();
                    chosen.reserved = chosen.reserved.plus(wants(cpu).amounts);
                }
                for node in &nodes {
                    prop_assert!(node.reserved.cpu_millis <= node.allocatable.cpu_millis);
                    prop_assert!(node.reserved.pods <= node.allocatable.pods);
                }
            }
        }
    }
}
