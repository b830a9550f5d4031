//! The daemon: opens every room in order, wires them, and runs until it is told to stop.
//!
//! The data path (pulls and their threads) belongs to the image store; what runs here is the control path. Stopping or
//! dying leaves instances alone: the next daemon takes them up again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::set_parent_process_death_signal;
use sampan_apiserver::{ApiServer, Listening, ServerConfig, TlsConfig};
use sampan_controllers::{Scheduler, cleanup};
use sampan_image::publish::CacheLocation;
use sampan_image::{ImageError, ImageStore, ImageStoreConfig};
use sampan_kit::error_chain::ErrorChain;
use sampan_kit::quantity::Quantity;
use sampan_network::{CniConfig, Network, NetworkConfig};
use sampan_node::{Node, NodeConfig};
use sampan_registry::RegistryConfig;
use sampan_runtime::{Runtime, RuntimeConfig};
use sampan_sandbox::{ProcessSandboxes, SandboxConfig};
use sampan_store::Store;
use sampan_sys::keeper::DescriptorKeeper;
use sampan_sys::mount::{self, MountRoom};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::descriptor;
use crate::cli::serve::{InternalArgs, Listen, ServeArgs, ServeRole};

/// How long a killed supervisor's daemon may take to stop, and how often is looked.
const PREDECESSOR_STOP_MAX: Duration = Duration::from_secs(20);
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(100);

/// Runs until SIGTERM, or until the supervisor dies.
pub(crate) fn run(args: &InternalArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("the daemon cannot be bound to its supervisor")?;
    let ready = descriptor(&args.descriptor, "ready")?;
    let keeper = DescriptorKeeper::open(descriptor(&args.descriptor, "keeper")?)
        .context("the daemon cannot take over what the supervisor holds for it")?;
    mount::enter_private_namespace().context("the daemon cannot have mounts of its own")?;
    let filter = EnvFilter::try_from_env("SAMPAN_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the daemon cannot start its threads")?;
    // A copy stays until the very end: the supervisor takes a closed one for the daemon's death.
    let outcome = runtime.block_on(serve(&args.serve, ready, keeper.clone()));
    runtime.shutdown_background();
    outcome
}

async fn serve(args: &ServeArgs, ready: std::os::fd::OwnedFd, keeper: DescriptorKeeper) -> anyhow::Result<()> {
    let stops = Stops::listen().context("the daemon cannot listen for signals")?;
    let mount_room = mount_room(args)?;
    let images = open_images(image_config(args, mount_room.clone(), keeper)?).await?;
    // Before anything is made on the host: whoever has the places already must leave nothing of this start behind.
    let listening = match args.role {
        ServeRole::Cri => None,
        ServeRole::All => {
            let listening = ApiServer::listen(server_config(args)).await;
            Some(listening.context("serve: the API cannot be served")?)
        }
    };
    let runtime = Arc::new(open_runtime(args, mount_room).await?);
    let outcome = match listening {
        None => super::cri::serve_alone(args, ready, stops, &runtime, &images).await,
        Some(listening) => serve_api(args, listening, ready, stops, &runtime, &images).await,
    };
    let closed = runtime.close().await.context("serve: the host cannot be left clean; the next start tries again");
    images.close().await;
    outcome.and(closed)
}

/// Opens the rooms that make pods. Where one of them cannot be opened, nothing of the others stays.
async fn open_runtime(args: &ServeArgs, mount_room: Option<Arc<MountRoom>>) -> anyhow::Result<Runtime> {
    let sandboxes = SandboxConfig { run_dir: args.run_dir.clone(), instance: args.instance.clone() };
    let sandboxes = ProcessSandboxes::open(sandboxes).await.context("serve: sandboxes cannot be made")?;
    let network = match Network::open(network_config(args)?).await.context("serve: the network cannot be set up") {
        Ok(network) => network,
        Err(error) => {
            sandboxes.close().await.context("serve: the host cannot be left clean; the next start tries again")?;
            return Err(error);
        }
    };
    match network.obstacles().await {
        Ok(obstacles) => {
            for obstacle in obstacles {
                tracing::warn!(%obstacle, "another firewall of this host drops what instances send");
            }
        }
        Err(error) => tracing::warn!(error = %ErrorChain(&error), "the host's firewall cannot be looked at"),
    }
    let config = RuntimeConfig { data_dir: args.data_dir.clone(), mount_room, pool_size: args.sandbox_pool };
    Runtime::open(config, sandboxes, network).context("serve: the runtime cannot be opened")
}

/// Serves the API, and the container runtime interface beside it where that is wanted, until it is told to stop.
async fn serve_api(
    args: &ServeArgs,
    listening: Listening,
    ready: std::os::fd::OwnedFd,
    mut stops: Stops,
    runtime: &Arc<Runtime>,
    images: &ImageStore,
) -> anyhow::Result<()> {
    let store = Store::open(&args.data_dir.join("store.db")).context("serve: the object store cannot be opened")?;
    let cri = super::cri::start(args, runtime, images).await?;
    let node_config = NodeConfig { name: None, data_dir: args.data_dir.clone() };
    let node = Node::open(&node_config, store.clone(), Arc::clone(runtime), images.clone())
        .await
        .context("serve: the node cannot start")?;
    let scheduler = Scheduler::open(store.clone()).await.context("serve: the scheduler cannot start")?;
    let api = ApiServer::start(listening, store.clone(), Arc::new(node.clone()), Arc::new(scheduler.clone()))
        .await
        .context("serve: the API cannot be served")?;
    let mut work = tokio::task::JoinSet::new();
    let (followed, mended) = (node.clone(), node);
    work.spawn(async move { followed.run().await.context("the node stopped") });
    work.spawn(async move {
        mended.mend().await;
        Ok(())
    });
    work.spawn(async move { scheduler.run().await.context("the scheduler stopped") });
    work.spawn(async move {
        cleanup::run(store).await;
        Ok(())
    });
    rustix::io::write(&ready, b"+").context("the supervisor cannot be told")?;
    let outcome = tokio::select! {
        () = stops.next() => Ok(()),
        ended = work.join_next() => match ended {
            Some(Ok(result)) => result,
            Some(Err(panic)) => Err(panic).context("a part of the daemon broke"),
            None => Ok(()),
        },
    };
    if let Some(cri) = cri {
        cri.stop().await;
    }
    api.stop().await;
    work.shutdown().await;
    outcome
}

/// The signals that ask the daemon to stop.
pub(super) struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn server_config(args: &ServeArgs) -> ServerConfig {
    let tls = match args.listen {
        Listen::At(address) => Some(TlsConfig {
            address,
            pki_dir: args.data_dir.join("pki"),
            kubeconfig: args.data_dir.join("kubeconfig"),
        }),
        Listen::Nowhere => None,
    };
    ServerConfig { socket: args.run_dir.join("sampan.sock"), tls }
}

/// A place for mounts, where the kernel clones only attached ones or `SAMPAN_MOUNT_ROOM=always` asks for it.
fn mount_room(args: &ServeArgs) -> anyhow::Result<Option<Arc<MountRoom>>> {
    let always = std::env::var_os("SAMPAN_MOUNT_ROOM").is_some_and(|value| value == "always");
    if !always && mount::clones_detached().context("serve: this kernel's mounts cannot be tried")? {
        return Ok(None);
    }
    let directory = args.run_dir.join("mounts");
    std::fs::create_dir_all(&directory).with_context(|| format!("serve: cannot make {}", directory.display()))?;
    let room =
        MountRoom::open(&directory).with_context(|| format!("serve: cannot mount on {}", directory.display()))?;
    Ok(Some(Arc::new(room)))
}

/// Opens the image store. The daemon of a supervisor that was killed may hold it for as long as it takes to stop.
async fn open_images(config: ImageStoreConfig) -> anyhow::Result<ImageStore> {
    let deadline = tokio::time::Instant::now() + PREDECESSOR_STOP_MAX;
    loop {
        match ImageStore::open(config.clone()).await {
            Err(ImageError::Locked { .. }) if tokio::time::Instant::now() < deadline => {
                tracing::info!("an older daemon is still stopping; waiting for it");
                tokio::time::sleep(PREDECESSOR_PAUSE).await;
            }
            opened => return opened.context("serve: the image store cannot be opened"),
        }
    }
}

fn image_config(
    args: &ServeArgs,
    mount_room: Option<Arc<MountRoom>>,
    keeper: DescriptorKeeper,
) -> anyhow::Result<ImageStoreConfig> {
    let mut registry = RegistryConfig::from_environment();
    registry.insecure.extend(args.insecure_registry.iter().cloned());
    for (host, mirror) in args.registry_mirror.iter().filter_map(|text| text.split_once('=')) {
        registry.mirrors.entry(host.to_owned()).or_default().push(mirror.to_owned());
    }
    let mut config = ImageStoreConfig::new(&args.data_dir, registry);
    config.mount_room = mount_room;
    config.keeper = Some(keeper);
    let cache = args.index_cache.as_deref().map(str::parse::<CacheLocation>).transpose();
    config.index_cache = cache.map_err(anyhow::Error::msg).context("--index-cache")?;
    if let Some(text) = &args.image_size_max {
        config.layer_bytes_max =
            u64::try_from(Quantity::parse(text)?.units()).context("--image-size-max: is negative")?;
    }
    let bytes = |text: &String| anyhow::Ok(u64::try_from(Quantity::parse(text)?.units())?);
    config.cache_bytes_max = args.image_cache_max.as_ref().map(bytes).transpose().context("--image-cache-max")?;
    let bandwidth = args.image_bandwidth.as_ref().map(bytes).transpose();
    config.background_bytes_per_second = bandwidth.context("--image-bandwidth")?;
    Ok(config)
}

fn network_config(args: &ServeArgs) -> anyhow::Result<NetworkConfig> {
    let mut config = NetworkConfig::new(&args.instance, args.data_dir.join("network"));
    config.lease_dir = args.run_dir.join("network");
    config.cni =
        args.cni_config_dir.clone().map(|config_dir| CniConfig { config_dir, bin_dir: args.cni_bin_dir.clone() });
    if let Some(text) = &args.pod_cidr4 {
        config.ipv4_pool = Some(text.parse().with_context(|| format!("--pod-cidr4: {text}"))?);
    }
    if let Some(text) = &args.pod_cidr6 {
        config.ipv6_pool = Some(text.parse().with_context(|| format!("--pod-cidr6: {text}"))?);
    }
    Ok(config)
}
