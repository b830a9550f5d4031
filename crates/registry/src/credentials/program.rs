//! Asking a `docker-credential-*` program for a login.
//!
//! Protocol: the server's name on stdin, JSON on stdout; exit status 1 with "credentials not found" means that it has none.

use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{CredentialsError, Login};
use crate::limits::{CREDENTIAL_PROGRAM_BYTES_MAX, CREDENTIAL_PROGRAM_TIMEOUT};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The login that the program `docker-credential-<suffix>` keeps for `server`.
pub(super) async fn get(suffix: &str, server: &str) -> Result<Option<Login>, CredentialsError> {
    let program = format!("docker-credential-{suffix}");
    if suffix.contains('/') {
        return Err(CredentialsError::Program { program, reason: "has a path in its name".to_owned() });
    }
    ask(&program, server).await
}

/// Runs `program`, a name on the `PATH` or a path.
pub(super) async fn ask(program: &str, server: &str) -> Result<Option<Login>, CredentialsError> {
    let fail = |reason: &str| CredentialsError::Program { program: program.to_owned(), reason: reason.to_owned() };
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| CredentialsError::Spawn { program: program.to_owned(), source })?;
    let (succeeded, output) = match timeout(CREDENTIAL_PROGRAM_TIMEOUT, converse(child, server)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(fail(&format!("broke off ({error})"))),
        Err(_elapsed) => return Err(fail("did not answer in time")),
    };
    if !succeeded {
        let words = String::from_utf8_lossy(&output);
        if words.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fail(&format!("failed (\"{}\")", sampan_oci::quote::Quote(words.trim()))));
    }
    // The cause would quote the secret.
    let Ok(answer) = serde_json::from_slice::<Answer>(&output) else { return Err(fail("did not answer with a login")) };
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::IdentityToken(answer.secret),
        _ => Login::Password { username: answer.username, password: answer.secret },
    }))
}

async fn converse(mut child: Child, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(format!("{server}\n").as_bytes()).await {
            // A program may know its answer without reading.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
            _ => drop(stdin),
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(CREDENTIAL_PROGRAM_BYTES_MAX).read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?.success(), output))
}
