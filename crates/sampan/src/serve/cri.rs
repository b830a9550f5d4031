//! The Container Runtime Interface as part of the daemon, beside the API or alone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sampan_cri::{CgroupDriver, CriConfig, CriServer};
use sampan_image::ImageStore;
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::Runtime;

use super::daemon::Stops;
use crate::cli::serve::{GroupDriver, ServeArgs};

/// How often the host's side is put back in order where no node does it.
const MEND_INTERVAL: Duration = Duration::from_secs(60);

/// Starts serving where the options say so.
pub(super) async fn start(
    args: &ServeArgs,
    runtime: &Arc<Runtime>,
    images: &ImageStore,
) -> anyhow::Result<Option<CriServer>> {
    let Some(socket) = args.cri_socket() else { return Ok(None) };
    let recovered = runtime.recover().await.context("serve: what the last run left cannot be looked at")?;
    let config = CriConfig {
        socket,
        data_dir: args.data_dir.clone(),
        driver: match args.cgroup_driver {
            GroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            GroupDriver::Systemd => CgroupDriver::Systemd,
        },
        pinned_images: args.pin_image.clone(),
    };
    let server = CriServer::start(config, Arc::clone(runtime), recovered, images.clone()).await;
    server.map(Some).context("serve: the container runtime interface cannot be served")
}

/// Serves nothing else until it is told to stop.
pub(super) async fn serve_alone(
    args: &ServeArgs,
    ready: OwnedFd,
    mut stops: Stops,
    runtime: &Arc<Runtime>,
    images: &ImageStore,
) -> anyhow::Result<()> {
    let server = start(args, runtime, images).await?;
    let server = server.context("serve: --role cri with --cri-listen none would serve nothing")?;
    for leftover in &runtime.recover().await?.removed {
        tracing::info!(leftover, "removed what a killed service left half done");
    }
    rustix::io::write(&ready, b"+").context("the supervisor cannot be told")?;
    let mend = async {
        let mut ticks = tokio::time::interval(MEND_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = runtime.mend().await {
                tracing::warn!(error = %ErrorChain(&error), "the network cannot be put back in order; trying again");
            }
        }
    };
    tokio::select! {
        () = stops.next() => {}
        () = mend => {}
    }
    server.stop().await;
    Ok(())
}
