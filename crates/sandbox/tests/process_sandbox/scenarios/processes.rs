//! Execs, streams and terminals.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_sandbox::{ExecProcess, ExecSpec, ExecStatus, StartError, User};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::host::{Host, PATIENCE, Pod, chain};

super::scenarios![
    exec_runs_beside,
    exec_errors,
    exec_with_a_terminal,
    attach_to_stdin,
    attach_to_a_terminal,
    slow_client_holds_up_and_loses_nothing,
    logs_are_complete,
    background_output_does_not_hold_the_exit,
];

async fn read_all(from: Option<impl AsyncRead + Unpin>) -> Result<String> {
    let mut text = String::new();
    let mut from = from.context("no such stream")?;
    tokio::time::timeout(PATIENCE, from.read_to_string(&mut text)).await??;
    Ok(text)
}

/// Reads until the text has been seen.
async fn read_until(from: &mut (impl AsyncRead + Unpin), wanted: &str) -> Result<String> {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(wanted) {
        let read = tokio::time::timeout(PATIENCE, from.read(&mut buffer))
            .await
            .with_context(|| format!("only {seen:?}"))??;
        ensure!(read > 0, "ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    Ok(seen)
}

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec { command: words.iter().map(|word| (*word).to_owned()).collect(), ..Default::default() }
}

async fn status(process: ExecProcess) -> Result<ExecStatus> {
    Ok(tokio::time::timeout(PATIENCE, process.exit).await?)
}

async fn sleeping(host: &Host) -> Result<Pod> {
    let pod = host.pod().await?;
    pod.start(pod.container("main", &["/bin/sleep", "1000"])?).await?;
    Ok(pod)
}

async fn exec_runs_beside(host: &mut Host) -> Result<()> {
    let pod = sleeping(host).await?;
    let mut spec = command(&["sh", "-c", "echo $GREETING $EXTRA $PWD; id -u; echo no >&2; hostname; exit 4"]);
    spec.env = vec![("EXTRA".into(), "more".into())];
    spec.working_dir = Some("/tmp".into());
    spec.user = Some(User::Named("web".into()));
    let mut process = pod.sandbox.exec("main", spec).await.map_err(chain)?;
    ensure!(read_all(process.stdout.take()).await? == "hello more /tmp\n33\ntestpod\n");
    ensure!(read_all(process.stderr.take()).await? == "no\n");
    ensure!(status(process).await? == ExecStatus::Ended { code: 4, signal: None });

    let mut spec = command(&["sh", "-c", "tr a-z A-Z; readlink /proc/self/ns/pid; readlink /proc/1/ns/pid"]);
    spec.stdin = true;
    let mut process = pod.sandbox.exec("main", spec).await.map_err(chain)?;
    let mut stdin = process.stdin.take().context("no stdin")?;
    stdin.write_all(b"shout").await?;
    stdin.shutdown().await?;
    let said = read_all(process.stdout.take()).await?;
    let mut lines = said.strip_prefix("SHOUT").context("not shouted")?.lines();
    ensure!(lines.next() == lines.next(), "an exec lives in the container's pid namespace: {said}");
    let killed = pod.sandbox.exec("main", command(&["sh", "-c", "kill -9 $$"])).await.map_err(chain)?;
    ensure!(status(killed).await? == ExecStatus::Ended { code: 137, signal: Some(9) });

    let waits = pod.sandbox.exec("main", command(&["sleep", "1000"])).await.map_err(chain)?;
    pod.sandbox.signal("main", libc::SIGKILL).await.map_err(chain)?;
    ensure!(status(waits).await? == ExecStatus::Ended { code: 137, signal: Some(9) }, "execs end with their container");
    pod.destroy().await
}

async fn exec_errors(host: &mut Host) -> Result<()> {
    let pod = sleeping(host).await?;
    let missing = pod.sandbox.exec("main", command(&["nothing-here"])).await.err().context("it ran")?;
    ensure!(matches!(missing, StartError::CommandNotFound { .. }), "{missing:?}");
    let nobody = pod.sandbox.exec("other", command(&["true"])).await.err().context("it ran")?;
    ensure!(nobody.to_string().contains("sandbox"), "{nobody:?}");
    let mut spec = command(&["true"]);
    spec.user = Some(User::Named("stranger".into()));
    let stranger = pod.sandbox.exec("main", spec).await.err().context("it ran")?;
    ensure!(matches!(stranger, StartError::UnknownUser { .. }), "{stranger:?}");
    pod.destroy().await
}

async fn exec_with_a_terminal(host: &mut Host) -> Result<()> {
    let pod = sleeping(host).await?;
    let mut spec = command(&["sh", "-c", "tty; stty size; read line; echo got $line; stty size; exit 6"]);
    (spec.tty, spec.stdin, spec.terminal_size) = (true, true, Some((123, 45)));
    let mut process = pod.sandbox.exec("main", spec).await.map_err(chain)?;
    let (mut stdin, mut stdout) =
        (process.stdin.take().context("no stdin")?, process.stdout.take().context("no stdout")?);
    let first = read_until(&mut stdout, "45 123\r\n").await?;
    ensure!(first.starts_with("/dev/pts/"), "{first:?}");
    process.terminal.as_ref().context("no terminal")?.resize(80, 24)?;
    stdin.write_all(b"it\n").await?;
    let rest = read_all(Some(stdout)).await?;
    ensure!(rest.ends_with("got it\r\n24 80\r\n"), "{rest:?}");
    ensure!(status(process).await? == ExecStatus::Ended { code: 6, signal: None });
    pod.destroy().await
}

async fn attach_to_stdin(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", "echo early; tr a-z A-Z; echo late >&2; exit 3")?;
    (spec.stdin, spec.stdin_once) = (true, true);
    pod.start(spec).await?;
    pod.wait_until_said("main", "early").await?;
    let mut attached = pod.sandbox.attach("main").await.map_err(chain)?;
    attached.stdin.write_all(b"one\ntwo\n").await?;
    attached.stdin.shutdown().await?;
    ensure!(read_all(Some(attached.stdout)).await? == "early\nONE\nTWO\n");
    ensure!(read_all(Some(attached.stderr)).await? == "late\n");
    ensure!(pod.exit().await?.code == 3);
    ensure!(pod.said("main")? == "early\nONE\nTWO\nlate\n", "{}", pod.said("main")?);

    // Without `stdin_once`, input goes on with the next client.
    let mut spec = pod.shell("next", "read one; read two; echo $one $two")?;
    spec.stdin = true;
    pod.start(spec).await?;
    for line in ["a\n", "b\n"] {
        let mut attached = pod.sandbox.attach("next").await.map_err(chain)?;
        attached.stdin.write_all(line.as_bytes()).await?;
        attached.stdin.shutdown().await?;
    }
    pod.exit().await?;
    ensure!(pod.said("next")? == "a b\n");
    pod.destroy().await
}

async fn attach_to_a_terminal(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let mut spec =
        pod.shell("main", "echo early; tty; test -c /dev/console && read line; echo got $line; stty size")?;
    (spec.tty, spec.stdin) = (true, true);
    pod.start(spec).await?;
    pod.wait_until_said("main", "/dev/pts/0").await?;
    let mut attached = pod.sandbox.attach("main").await.map_err(chain)?;
    let replay = read_until(&mut attached.stdout, "pts/0").await?;
    ensure!(replay.starts_with("early\r\n"), "{replay:?}");
    pod.sandbox.resize("main", 77, 11).await.map_err(chain)?;
    attached.stdin.write_all(b"it\n").await?;
    let rest = read_all(Some(attached.stdout)).await?;
    ensure!(rest.ends_with("got it\r\n11 77\r\n"), "{rest:?}");
    ensure!(pod.exit().await?.code == 0);
    pod.destroy().await
}

async fn slow_client_holds_up_and_loses_nothing(host: &mut Host) -> Result<()> {
    const BYTES: usize = 3 * 1024 * 1024;
    let mut pod = host.pod().await?;
    let mut spec = pod.shell("main", &format!("read go; yes | head -c {BYTES}"))?;
    (spec.stdin, spec.stdin_once) = (true, true);
    pod.start(spec).await?;
    let mut attached = pod.sandbox.attach("main").await.map_err(chain)?;
    attached.stdin.write_all(b"go\n").await?;
    // Nothing is read for now: what is written must stop at what queues and pipes hold.
    pod.wait_until(|pod| Ok(pod.log_path("main").metadata()?.len() > 0)).await?;
    let held = tokio::time::timeout(Duration::from_millis(200), pod.events.recv()).await;
    ensure!(held.is_err(), "it went on without its reader");
    ensure!(read_all(Some(attached.stdout)).await?.len() == BYTES);
    ensure!(pod.exit().await?.code == 0);
    pod.destroy().await
}

async fn logs_are_complete(host: &mut Host) -> Result<()> {
    let mut pod = host.pod().await?;
    let (code, said) = pod.run("seq 1 20000; printf 'no line feed'").await?;
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    ensure!(code == 0 && said == expected + "no line feed", "{} bytes", said.len());
    let (_, said) = pod.run("head -c 50000 /dev/zero | tr '\\0' x; echo").await?;
    ensure!(said.trim_end().len() == 50_000 && said.ends_with("x\n"), "a long line is cut and put together again");
    let raw = std::fs::read_to_string(pod.log_path("main"))?;
    ensure!(raw.lines().filter(|line| line.contains(" stdout P ")).count() == 3);
    let (_, said) = pod.run("echo out; echo err >&2").await?;
    ensure!(said.contains("out\n") && said.contains("err\n"));
    ensure!(std::fs::read_to_string(pod.log_path("main"))?.contains(" stderr F err\n"));
    pod.destroy().await
}

/// In a shared pid namespace a forgotten process outlives its container and holds its pipes.
async fn background_output_does_not_hold_the_exit(host: &mut Host) -> Result<()> {
    let mut spec = host.spec()?;
    spec.share_process_namespace = true;
    let mut pod = host.pod_of(spec).await?;
    let (code, said) = pod.run("echo $$; sleep 1000 & exit 2").await?;
    ensure!(code == 2 && said.trim() != "1", "{code} {said:?}");
    let (_, said) = pod.run("cat /proc/1/comm").await?;
    ensure!(said.starts_with("pod-"), "the agent is the pod's PID 1: {said}");
    pod.destroy().await
}
