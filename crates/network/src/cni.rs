//! Networks that are made by other people's programs: chains of CNI plugins (the specification 1.1).
//!
//! ```text
//! ADD    record ─> plugin, plugin, … ─> result into the record     a failure undoes all of them
//! DEL    plugins in reverse ─> record gone                          a failure keeps the record: tried again at the next start
//! ```
//! Invariants: a record stands before the first plugin runs; calls about one sandbox come one after the other, also when
//! the first was started by a daemon that is dead; what a plugin prints is bounded and checked.
//!
//! A sandbox's namespace is often gone when its network is taken away. Plugins want to see what they made in it (`bridge`
//! forgets its masquerading rules otherwise): they are then shown a stand-in, an empty namespace with an interface that has
//! the sandbox's name and addresses.

mod config;
mod plugin;
mod record;
mod result;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use sampan_sys::namespace;
use sampan_sys::netlink::{Family, NetlinkSocket};
use serde_json::{Map, Value, json};

use crate::config::check_sandbox;
use crate::error::{Attempted as _, NetworkError};
use crate::port::PortMapping;
use crate::rtnetlink::{self, Counters, Link};
use crate::{AttachOptions, Attachment, PodName, Usage, shaping};
use config::Chain;
use plugin::{Call, GUEST_INTERFACE, Operation};
use record::{Record, Records};

/// The loopback interface has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Where chains and their programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    /// Chains; the first by name counts.
    pub config_dir: PathBuf,
    /// Programs.
    pub bin_dir: PathBuf,
}

/// A network that others' programs could not make.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("no network is configured in {}; put a *.conflist there", .0.display())]
    NoConfig(PathBuf),
    #[error("cannot read network configuration {}", path.display())]
    ConfigUnreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network configuration {} cannot be used: {reason}", path.display())]
    ConfigInvalid { path: PathBuf, reason: String },
    #[error("no plugin of network {network} can do {capability}; add one with that capability, or do without")]
    Incapable { network: String, capability: &'static str },
    #[error("network plugin {plugin} fails to {operation}: {reason}")]
    Plugin { plugin: String, operation: &'static str, reason: String },
    #[error("the result of network {network} cannot be used: {reason}")]
    Result { network: String, reason: String },
    #[error("cannot {operation} records of sandboxes' networks in {}", folder.display())]
    Record {
        operation: &'static str,
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the pod's {field} {value:?} cannot be told to network plugins; name it by letters, digits, dots and dashes"
    )]
    Unspeakable { field: &'static str, value: String },
}

impl CniError {
    fn record(error: NetworkError) -> Self {
        let source = io::Error::other(sampan_kit::error_chain::ErrorChain(&error).to_string());
        Self::Record { operation: "keep", folder: PathBuf::new(), source }
    }
}

/// Calls plugins and remembers what for. Blocks for as long as they take.
#[derive(Debug)]
pub(crate) struct Cni {
    config: CniConfig,
    records: Records,
    home: OwnedFd,
    busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Cni {
    /// The calling thread's network namespace is the host's.
    pub(crate) fn open(config: CniConfig, state_dir: &Path) -> Result<Self, NetworkError> {
        let home = namespace::current_network()
            .map_err(|source| NetworkError::System { operation: "open the host's network namespace", source })?;
        Ok(Self { config, records: Records::open(&state_dir.join("cni"))?, home, busy: Mutex::default() })
    }

    pub(crate) fn attach(
        &self,
        sandbox: &str,
        namespace: BorrowedFd<'_>,
        options: &AttachOptions,
    ) -> Result<Attachment, NetworkError> {
        check_sandbox(sandbox)?;
        let alone = self.alone(sandbox);
        let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
        if self.records.get(sandbox)?.is_some() {
            return Err(NetworkError::AlreadyAttached { sandbox: sandbox.to_owned() });
        }
        let (chain, text) = config::read(&self.config.config_dir)?;
        let wishes = wishes(&chain, options)?;
        let arguments = arguments(sandbox, &options.pod)?;
        let mut record = Record { sandbox: sandbox.to_owned(), chain: text, arguments, wishes, result: None };
        self.records.write(&record)?;
        let added = self.add(&chain, &mut record, namespace);
        if let Err(error) = &added {
            let path = path_of(namespace);
            if let Err(again) = self.undo(&chain, &record, &path) {
                tracing::warn!(sandbox, %error, %again, "a half-made network stays until the next start");
            }
        }
        added
    }

    fn add(&self, chain: &Chain, record: &mut Record, namespace: BorrowedFd<'_>) -> Result<Attachment, NetworkError> {
        let inside = self.socket_in(namespace)?;
        inside.call(rtnetlink::set_up(LOOPBACK_INDEX)).attempted(|| "set up the sandbox's loopback".to_owned())?;
        let path = path_of(namespace);
        let mut previous = None;
        for plugin in &chain.plugins {
            let input = plugin.input(chain, &record.wishes, previous.as_ref());
            let printed = self.call(record, &path).run(
                &plugin.program,
                Operation::Add,
                self.records.input(&record.sandbox, input.to_string().as_bytes())?,
            )?;
            previous = printed;
        }
        let result = previous.unwrap_or_default();
        let outcome =
            result::read(&result).map_err(|reason| CniError::Result { network: chain.name.clone(), reason })?;
        record.result = Some(result);
        self.records.write(record)?;
        Ok(attachment(outcome))
    }

    /// Takes the network away. What is not attached is no error.
    pub(crate) fn detach(&self, sandbox: &str) -> Result<(), NetworkError> {
        check_sandbox(sandbox)?;
        let alone = self.alone(sandbox);
        let detached = {
            let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
            self.detach_alone(sandbox)
        };
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
        detached
    }

    fn detach_alone(&self, sandbox: &str) -> Result<(), NetworkError> {
        let Some(record) = self.records.get(sandbox)? else { return Ok(()) };
        let chain = config::parse(record.chain.as_bytes())
            .map_err(|reason| CniError::ConfigInvalid { path: PathBuf::from(sandbox), reason })?;
        let stand_in = self.stand_in(record.result.as_ref())?;
        self.undo(&chain, &record, &path_of(stand_in.as_fd()))
    }

    fn undo(&self, chain: &Chain, record: &Record, path: &str) -> Result<(), NetworkError> {
        self.records.wait_for_plugins(&record.sandbox)?;
        let result = record.result.as_ref().map(|result| seen_from(result, path));
        for plugin in chain.plugins.iter().rev() {
            let input = plugin.input(chain, &record.wishes, result.as_ref());
            let input = self.records.input(&record.sandbox, input.to_string().as_bytes())?;
            self.call(record, path).run(&plugin.program, Operation::Del, input)?;
        }
        Ok(self.records.remove(&record.sandbox)?)
    }

    /// Asks the plugins whether all is as they left it, where they can be asked.
    pub(crate) fn check(&self, sandbox: &str, namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let alone = self.alone(sandbox);
        let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
        let not_attached = || NetworkError::NotAttached { sandbox: sandbox.to_owned() };
        let record = self.records.get(sandbox)?.ok_or_else(not_attached)?;
        let chain = config::parse(record.chain.as_bytes())
            .map_err(|reason| CniError::ConfigInvalid { path: PathBuf::from(sandbox), reason })?;
        // The operation came with 0.4.0.
        if chain.no_check || chain.version.starts_with("0.3.") {
            return Ok(());
        }
        let path = path_of(namespace);
        let result = record.result.as_ref().map(|result| seen_from(result, &path));
        // Who was asked for nothing has nothing to check (and Debian's `bandwidth` crashes over it).
        for plugin in chain.plugins.iter().filter(|plugin| plugin.is_wanted(&record.wishes)) {
            let input = plugin.input(&chain, &record.wishes, result.as_ref());
            let input = self.records.input(sandbox, input.to_string().as_bytes())?;
            self.call(&record, &path).run(&plugin.program, Operation::Check, input)?;
        }
        Ok(())
    }

    /// Takes away the networks of all but these, and says which those were.
    pub(crate) fn reconcile(&self, keep: &HashSet<String>) -> Result<Vec<String>, NetworkError> {
        let mut removed = Vec::new();
        for sandbox in self.records.all()?.into_keys().filter(|sandbox| !keep.contains(sandbox)) {
            match self.detach(&sandbox) {
                Ok(()) => removed.push(format!("network of sandbox {sandbox}")),
                // One plugin that is gone must not keep the whole service from starting.
                Err(error) => tracing::error!(%sandbox, error = %sampan_kit::error_chain::ErrorChain(&error),
                    "a sandbox's network cannot be taken away; the next start tries again"),
            }
        }
        Ok(removed)
    }

    pub(crate) fn attachment(&self, sandbox: &str) -> Result<Option<Attachment>, NetworkError> {
        let result = self.records.get(sandbox)?.and_then(|record| record.result);
        Ok(result.and_then(|result| result::read(&result).ok()).map(attachment))
    }

    /// What sandboxes received and sent, of those whose plugins have named the host's end.
    pub(crate) fn usage(&self) -> Result<HashMap<String, Usage>, NetworkError> {
        let mut counters: HashMap<String, Counters> = HashMap::new();
        let host = self.socket_in(self.home.as_fd())?;
        host.dump(rtnetlink::get_links(), |reply| {
            counters.extend(Link::read(reply).map(|link| (link.name, link.counters)))
        })
        .attempted(|| "list network interfaces".to_owned())?;
        let records = self.records.all()?.into_iter();
        Ok(records
            .filter_map(|(sandbox, record)| {
                let outcome = result::read(&record.result?).ok()?;
                let host = counters.get(&outcome.host_interface?)?;
                Some((sandbox, Usage { received_bytes: host.sent_bytes, sent_bytes: host.received_bytes }))
            })
            .collect())
    }

    fn call<'a>(&'a self, record: &'a Record, namespace: &'a str) -> Call<'a> {
        Call {
            home: self.home.as_fd(),
            bin_dir: &self.config.bin_dir,
            sandbox: &record.sandbox,
            namespace,
            arguments: &record.arguments,
        }
    }

    fn alone(&self, sandbox: &str) -> Arc<Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(busy.entry(sandbox.to_owned()).or_default())
    }

    fn socket_in(&self, namespace: BorrowedFd<'_>) -> Result<NetlinkSocket, NetworkError> {
        namespace::in_network(namespace, || NetlinkSocket::open(Family::Route))
            .and_then(|socket| socket)
            .map_err(|source| NetworkError::System { operation: "enter a network namespace", source })
    }

    /// See the head of this file.
    fn stand_in(&self, result: Option<&Value>) -> Result<OwnedFd, NetworkError> {
        let made = namespace::new_network()
            .map_err(|source| NetworkError::System { operation: "make a network namespace", source })?;
        let Some(outcome) = result.and_then(|result| result::read(result).ok()) else { return Ok(made) };
        let socket = self.socket_in(made.as_fd())?;
        let attempted = || "make the stand-in of a sandbox's interface".to_owned();
        let requests = vec![rtnetlink::create_bridge(GUEST_INTERFACE), rtnetlink::get_link(GUEST_INTERFACE)];
        let link = socket.pipeline(requests).attempted(attempted)?.iter().find_map(Link::read);
        let Some(link) = link else { return Ok(made) };
        for address in addresses(&outcome) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            match socket.call(rtnetlink::add_address(link.index, address, length)) {
                // Where IPv6 is off no plugin has made anything of it.
                Err(error) if address.is_ipv6() && (error.is(Errno::ACCESS) || error.is(Errno::OPNOTSUPP)) => {}
                other => other.attempted(attempted)?,
            }
        }
        Ok(made)
    }
}

fn addresses(outcome: &result::Outcome) -> impl Iterator<Item = IpAddr> {
    [outcome.ipv4.map(IpAddr::V4), outcome.ipv6.map(IpAddr::V6)].into_iter().flatten()
}

fn attachment(outcome: result::Outcome) -> Attachment {
    let result::Outcome { ipv4, ipv6, host_interface } = outcome;
    Attachment { ipv4, ipv6, host_interface: host_interface.unwrap_or_default() }
}

/// Plugins open it themselves; it holds as long as the descriptor does.
fn path_of(namespace: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// The result with this path to the namespace: plugins insist on the one that they are called with.
fn seen_from(result: &Value, path: &str) -> Value {
    let mut result = result.clone();
    for interface in result.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten() {
        match interface.get_mut("sandbox") {
            Some(Value::String(sandbox)) if !sandbox.is_empty() => path.clone_into(sandbox),
            _ => {}
        }
    }
    result
}

/// What is asked of the chain beyond an address. That nobody can do it is an error: silence would be a lie.
fn wishes(chain: &Chain, options: &AttachOptions) -> Result<Map<String, Value>, CniError> {
    let mut wishes = Map::new();
    if !options.ports.is_empty() {
        let ports: Vec<Value> = options.ports.iter().map(port_wish).collect();
        wishes.insert("portMappings".to_owned(), ports.into());
    }
    if !options.bandwidth.is_unlimited() {
        let mut rates = Map::new();
        let limits = [("ingress", options.bandwidth.ingress), ("egress", options.bandwidth.egress)];
        for (direction, rate) in limits.into_iter().filter_map(|(direction, rate)| Some((direction, rate?))) {
            // The plugin takes bits, and no more of them than fit 32.
            let bucket = shaping::token_bucket(rate, crate::limits::MTU_DEFAULT);
            let burst = bucket.burst_bytes.max(crate::limits::SEGMENTED_PACKET_BYTES_MAX).saturating_mul(8);
            rates.insert(format!("{direction}Rate"), rate.bits_per_second().into());
            rates.insert(format!("{direction}Burst"), burst.into());
        }
        wishes.insert("bandwidth".to_owned(), rates.into());
    }
    for capability in ["portMappings", "bandwidth"] {
        if wishes.contains_key(capability) && !chain.plugins.iter().any(|plugin| plugin.can(capability)) {
            return Err(CniError::Incapable { network: chain.name.clone(), capability });
        }
    }
    Ok(wishes)
}

fn port_wish(port: &PortMapping) -> Value {
    json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.to_string(),
        "hostIP": port.host_ip.map(|address| address.to_string()).unwrap_or_default(),
    })
}

/// `CNI_ARGS`, as every Kubernetes runtime gives them.
fn arguments(sandbox: &str, pod: &PodName) -> Result<String, CniError> {
    let mut text = format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={sandbox}");
    let named = [
        ("namespace", "K8S_POD_NAMESPACE", &pod.namespace),
        ("name", "K8S_POD_NAME", &pod.name),
        ("UID", "K8S_POD_UID", &pod.uid),
    ];
    for (field, key, value) in named.into_iter().filter(|(_, _, value)| !value.is_empty()) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !value.bytes().all(plain) {
            return Err(CniError::Unspeakable { field, value: value.chars().take(64).collect() });
        }
        text.push_str(&format!(";{key}={value}"));
    }
    Ok(text)
}

/// For the fuzzer: a chain's text, and a plugin's result.
pub fn fuzz_cni(bytes: &[u8]) -> bool {
    let chain = config::parse(bytes).is_ok();
    std::hint::black_box(result::complaint(bytes, bytes));
    let result = serde_json::from_slice(bytes).ok().and_then(|value| result::read(&value).ok());
    chain || result.is_some_and(|outcome| addresses(&outcome).next().is_some())
}
