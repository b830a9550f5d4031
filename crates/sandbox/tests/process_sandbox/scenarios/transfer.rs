//! Copying out of and into containers.

use std::io::{Read, Write};

use anyhow::{Result, ensure};
use sampan_sandbox::SandboxError;

use crate::host::{Host, PATIENCE, chain};

super::scenarios![copies_trees, copy_errors];

async fn copies_trees(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let script = "mkdir -p /tree/sub; echo content > /tree/file; chown 33:34 /tree/file; chmod 750 /tree/file; \
                  ln /tree/file /tree/sub/second; ln -s ../file /tree/sub/link; ln -s / /tree/out; \
                  head -c 300000 /dev/urandom > /tree/sub/random; mkdir /into; echo ready; \
                  while [ ! -e /into/tree/sub/random ]; do sleep 0.02; done; sleep 1000";
    pod.start(pod.shell("main", script)?).await?;
    pod.wait_until_said("main", "ready").await?;
    let pipe = pod.sandbox.copy_out("main", "/tree").await.map_err(chain)?;
    let archive = tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        std::fs::File::from(pipe).read_to_end(&mut archive).map(|_| archive)
    })
    .await??;
    ensure!(archive.len() > 300_000 && archive.len() % 512 == 0);

    let (pipe, outcome) = pod.sandbox.copy_in("main", "/into").await.map_err(chain)?;
    tokio::task::spawn_blocking(move || std::fs::File::from(pipe).write_all(&archive)).await??;
    tokio::time::timeout(PATIENCE, outcome).await?.map_err(chain)?;
    let compare = "cd /into/tree; stat -c '%u %g %a %h' file; cat sub/link; readlink out; \
                   cmp sub/random /tree/sub/random 2>&1 || [ \"$(cat sub/random | wc -c)\" = 300000 ] && echo same";
    let exec =
        sampan_sandbox::ExecSpec { command: ["sh", "-c", compare].map(str::to_owned).to_vec(), ..Default::default() };
    let said = pod.exec_to_end("main", exec).await?;
    ensure!(said.starts_with("33 34 750 2\ncontent\n/\n") && said.ends_with("same\n"), "{said}");
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}

async fn copy_errors(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    let missing = pod.sandbox.copy_out("main", "/nothing/here").await;
    ensure!(matches!(&missing, Err(SandboxError::NoSuchPath { path }) if path == "/nothing/here"), "{missing:?}");
    let (pipe, outcome) = pod.sandbox.copy_in("main", "/nothing").await.map_err(chain)?;
    drop(pipe);
    ensure!(matches!(outcome.await, Err(SandboxError::NoSuchPath { .. })));
    let (pipe, outcome) = pod.sandbox.copy_in("main", "/tmp").await.map_err(chain)?;
    tokio::task::spawn_blocking(move || std::fs::File::from(pipe).write_all(&[7; 2048])).await?.ok();
    let refused = outcome.await;
    ensure!(matches!(&refused, Err(SandboxError::Agent { .. })), "{refused:?}");
    let nobody = pod.sandbox.copy_out("other", "/").await;
    ensure!(matches!(nobody, Err(SandboxError::NoSuchContainer { .. })));
    pod.kill_and_wait(1).await?;
    pod.destroy().await
}
