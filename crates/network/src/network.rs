//! The network of one service, as the rest of the node sees it.
//!
//! A thread of its own owns everything; callers hand it closures over a bounded channel and await the answer. It is
//! spawned by [`Network::open`] and so inherits the caller's network namespace, the host's: sockets, kernel settings
//! and netlink requests all belong to the namespace of the thread that makes them.
//!
//! Cancellation: a call whose future is dropped is still carried out. An attachment nobody heard of is removed by
//! [`Network::detach`] or the next [`Network::reconcile`].

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::bandwidth::Bandwidth;
use crate::cni::Cni;
use crate::config::NetworkConfig;
use crate::dns::{self, DnsSettings, HostAlias};
use crate::error::NetworkError;
use crate::held_port::HeldPort;
use crate::host::{AttachFailure, Host};
use crate::limits::JOBS_QUEUED_MAX;
use crate::port::PortMapping;
use crate::prefix::Prefix;

/// What a sandbox got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `None` only where somebody else gives addresses out.
    pub ipv4: Option<Ipv4Addr>,
    /// `None` where the host has IPv6 switched off.
    pub ipv6: Option<Ipv6Addr>,
    /// The host's end of the cable; the sandbox's is `eth0`.
    pub host_interface: String,
}

impl Attachment {
    /// The sandbox's addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6)].into_iter().flatten().collect()
    }
}

/// What a sandbox's network should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// How fast it may be.
    pub bandwidth: Bandwidth,
    /// Whose it is, for networks that are made by others' programs.
    pub pod: PodName,
}

/// What Kubernetes calls the pod; empty where nobody knows yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Bytes that a sandbox received and sent since it was attached, link-layer headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// Another program's firewall chain that drops what it does not know, and so may stop sandboxes' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub table: String,
    pub chain: String,
    pub(crate) pool: Prefix,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, chain, pool } = self;
        write!(
            f,
            "chain {chain} of table {table} drops forwarded packets; allow {pool} there (firewalld: firewall-cmd \
             --permanent --zone=trusted --add-source={pool} && firewall-cmd --reload; ufw: ufw route allow from {pool} \
             && ufw route allow to {pool})"
        )
    }
}

type Job = Box<dyn FnOnce(&mut Host) + Send>;

/// See the head of this file.
#[derive(Debug)]
pub struct Network {
    engine: Engine,
    resolv_conf: PathBuf,
    resolved_upstream: PathBuf,
}

#[derive(Debug)]
enum Engine {
    /// Our own, on its thread.
    Routed(mpsc::Sender<Job>),
    /// Others' programs.
    Plugins(Arc<Cni>),
}

impl Network {
    /// Takes over what an earlier run left under this instance name and state directory, and sets up the rest. Call
    /// [`Network::reconcile`] before the first attachment, once it is known which sandboxes live on.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        let (resolv_conf, resolved_upstream) = (config.resolv_conf.clone(), config.resolved_upstream.clone());
        let engine = match config.cni.clone() {
            Some(cni) => Engine::Plugins(Arc::new(Cni::open(cni, &config.state_dir)?)),
            None => Engine::Routed(open_routed(config).await?),
        };
        Ok(Self { engine, resolv_conf, resolved_upstream })
    }

    /// Whether others' programs make the network, which want to know beforehand whose it will be.
    pub fn is_made_by_plugins(&self) -> bool {
        matches!(self.engine, Engine::Plugins(_))
    }

    /// Connects a sandbox's fresh network namespace: loopback up, `eth0` with its addresses and routes, ports
    /// published. After an error nothing is left of it.
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: BorrowedFd<'_>,
        options: &AttachOptions,
    ) -> Result<Attachment, NetworkError> {
        let netns = netns
            .try_clone_to_owned()
            .map_err(|source| NetworkError::System { operation: "keep the sandbox's network namespace", source })?;
        let (sandbox, options) = (sandbox.to_owned(), options.clone());
        let attached = match &self.engine {
            Engine::Plugins(cni) => {
                return call(cni, move |cni| cni.attach(&sandbox, netns.as_fd(), &options)).await;
            }
            Engine::Routed(jobs) => ask(jobs, move |host| host.attach(&sandbox, &netns, &options)).await?,
        };
        match attached {
            Ok(attachment) => Ok(attachment),
            Err(AttachFailure { error, released }) => {
                release(released).await;
                Err(error)
            }
        }
    }

    /// Whether an attached sandbox still has what it was given, as far as its network can tell.
    pub async fn check(&self, sandbox: &str, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let Engine::Plugins(cni) = &self.engine else { return Ok(()) };
        let netns = netns
            .try_clone_to_owned()
            .map_err(|source| NetworkError::System { operation: "keep the sandbox's network namespace", source })?;
        let sandbox = sandbox.to_owned();
        call(cni, move |cni| cni.check(&sandbox, netns.as_fd())).await
    }

    /// Withdraws ports and address. The cable is left to the end of the sandbox's namespace, which the caller brings
    /// about. Detaching what is not attached is no error.
    pub async fn detach(&self, sandbox: &str) -> Result<(), NetworkError> {
        let sandbox = sandbox.to_owned();
        match &self.engine {
            Engine::Plugins(cni) => call(cni, move |cni| cni.detach(&sandbox)).await?,
            Engine::Routed(jobs) => release(ask(jobs, move |host| host.detach(&sandbox)).await??).await,
        }
        Ok(())
    }

    /// Removes whatever belongs to no sandbox in `keep`, says what that was, and mends the rest (table, held ports).
    pub async fn reconcile(&self, keep: &HashSet<String>) -> Result<Vec<String>, NetworkError> {
        let keep = keep.clone();
        let jobs = match &self.engine {
            Engine::Plugins(cni) => return call(cni, move |cni| cni.reconcile(&keep)).await,
            Engine::Routed(jobs) => jobs,
        };
        let (removed, ports) = ask(jobs, move |host| host.reconcile(&keep)).await??;
        release(ports).await;
        Ok(removed)
    }

    /// Stops, and when nothing is attached removes the table and the interfaces. Kernel settings stay as they are.
    pub async fn close(&self) -> Result<(), NetworkError> {
        let Engine::Routed(jobs) = &self.engine else { return Ok(()) };
        let (closed, ports) = ask(jobs, Host::close).await??;
        release(ports).await;
        if !closed {
            tracing::info!("sandboxes are attached; their network stays");
        }
        Ok(())
    }

    /// Puts back what other programs have taken away: the table after somebody flushed all rules, the way through a
    /// shared firewall after its reload, ports that could not be held. Cheap enough for every minute.
    pub async fn mend(&self) -> Result<(), NetworkError> {
        match &self.engine {
            Engine::Plugins(_) => Ok(()),
            Engine::Routed(jobs) => ask(jobs, Host::mend).await?,
        }
    }

    /// What a sandbox received and sent.
    pub async fn usage(&self, sandbox: &str) -> Result<Usage, NetworkError> {
        let sandbox = sandbox.to_owned();
        match &self.engine {
            Engine::Plugins(cni) => {
                let all = call(cni, |cni| cni.usage()).await?;
                all.get(&sandbox).copied().ok_or(NetworkError::NotAttached { sandbox })
            }
            Engine::Routed(jobs) => ask(jobs, move |host| host.usage(&sandbox)).await?,
        }
    }

    /// The same of all attached sandboxes, by one request to the kernel.
    pub async fn usage_of_all(&self) -> Result<HashMap<String, Usage>, NetworkError> {
        match &self.engine {
            Engine::Plugins(cni) => call(cni, |cni| cni.usage()).await,
            Engine::Routed(jobs) => ask(jobs, |host| host.usage_of_all()).await?,
        }
    }

    /// What an attached sandbox has; `None` when it is not attached.
    pub async fn attachment(&self, sandbox: &str) -> Result<Option<Attachment>, NetworkError> {
        let sandbox = sandbox.to_owned();
        match &self.engine {
            Engine::Plugins(cni) => call(cni, move |cni| cni.attachment(&sandbox)).await,
            Engine::Routed(jobs) => ask(jobs, move |host| host.attachment(&sandbox)).await,
        }
    }

    /// Firewall chains of others that may stop sandboxes' packets, each with the way out.
    pub async fn obstacles(&self) -> Result<Vec<Obstacle>, NetworkError> {
        match &self.engine {
            Engine::Plugins(_) => Ok(Vec::new()),
            Engine::Routed(jobs) => ask(jobs, |host| host.obstacles()).await?,
        }
    }

    /// The text of a sandbox's `/etc/resolv.conf`; reads the host's anew each time.
    pub fn resolv_conf(&self, dns: &DnsSettings) -> String {
        dns::resolv_conf(&self.resolv_conf, &self.resolved_upstream, dns)
    }

    /// The text of a sandbox's `/etc/hosts`.
    pub fn hosts_file(&self, hostname: &str, addresses: &[IpAddr], aliases: &[HostAlias]) -> String {
        dns::hosts_file(hostname, addresses, aliases)
    }
}

/// Starts the thread that owns everything.
async fn open_routed(config: NetworkConfig) -> Result<mpsc::Sender<Job>, NetworkError> {
    let (jobs, mut queue) = mpsc::channel::<Job>(JOBS_QUEUED_MAX);
    let (opened, outcome) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new()
        .name("network".to_owned())
        .spawn(move || {
            let mut host = match Host::open(&config, runtime) {
                Ok(host) => host,
                Err(error) => return drop(opened.send(Err(error))),
            };
            if opened.send(Ok(())).is_ok() {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut host);
                }
            }
        })
        .map_err(|source| NetworkError::System { operation: "start the network's thread", source })?;
    outcome.await.map_err(|_gone| NetworkError::Stopped)??;
    Ok(jobs)
}

async fn ask<T: Send + 'static>(
    jobs: &mpsc::Sender<Job>,
    question: impl FnOnce(&mut Host) -> T + Send + 'static,
) -> Result<T, NetworkError> {
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move |host| {
        // Whoever asked may have gone; the work is done all the same.
        drop(reply.send(question(host)));
    });
    jobs.send(job).await.map_err(|_closed| NetworkError::Stopped)?;
    answer.await.map_err(|_gone| NetworkError::Stopped)
}

/// Runs plugins off the event loop.
async fn call<T: Send + 'static>(
    cni: &Arc<Cni>,
    work: impl FnOnce(&Cni) -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let cni = Arc::clone(cni);
    tokio::task::spawn_blocking(move || work(&cni)).await.map_err(|_panicked| NetworkError::Stopped)?
}

async fn release(ports: Vec<HeldPort>) {
    for port in ports {
        port.release().await;
    }
}
