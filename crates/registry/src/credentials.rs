//! Logins: where they are looked for, and which one fits an image.
//!
//! Files are docker's `config.json`, the containers tools' `auth.json` and Kubernetes' image pull secrets; all three have one
//! form. The longest key that is a prefix of `registry/repository` wins, as containers-auth.json(5) says; docker's keys, which
//! are URLs, are read as the hosts that they mean. Invariant: a secret that came with a pod never runs a credential program of
//! this machine, and no password is ever shown by `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sampan_oci::reference::{DOCKER_HUB, Reference};
use serde::Deserialize;

use crate::error::FetchError;
use crate::limits;

mod program;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the credentials in {} cannot be read; correct the file's permissions or remove it", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the credentials in {origin} are not valid; log in again or remove them")]
    Json {
        origin: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the credentials for {registry} in {origin} are not base64 of user:password; log in again")]
    Encoding { registry: String, origin: String },
    #[error("the credential program {program} cannot be run; install it, or remove it from the auth file")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the credential program {program} {reason}; run it by hand to see why, or remove it from the auth file")]
    Program { program: String, reason: String },
    #[error("the login contains characters that HTTP cannot carry; log in again")]
    Unprintable,
}

/// One way of being known to a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Login {
    Password {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token that the token service exchanges.
    IdentityToken(String),
    /// A bearer token to be shown to the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(out, "Password({username:?}, …)"),
            Self::IdentityToken(_) => out.write_str("IdentityToken(…)"),
            Self::RegistryToken(_) => out.write_str("RegistryToken(…)"),
        }
    }
}

/// Which logins one call may use. The first source that knows the image's registry wins.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    login: Option<Login>,
    secrets: Vec<Arc<AuthFile>>,
    host_files: bool,
}

impl Credentials {
    /// No login at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The auth files of this machine ([`crate::RegistryConfig::auth_files`]).
    pub fn host() -> Self {
        Self { host_files: true, ..Self::default() }
    }

    /// This login, for the registry that the image's reference names.
    pub fn login(login: Login) -> Self {
        Self { login: Some(login), ..Self::default() }
    }

    /// Image pull secrets of a pod.
    pub fn secrets(secrets: Vec<Arc<AuthFile>>) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// The auth files of this machine too, after what is there already.
    #[must_use]
    pub fn or_host(self) -> Self {
        Self { host_files: true, ..self }
    }

    /// Whether nothing but this machine's own files is used: whoever asks brings no login.
    #[must_use]
    pub fn brings_none(&self) -> bool {
        self.login.is_none() && self.secrets.is_empty()
    }

    /// The login that the caller gave for an image's own registry.
    pub fn given_login(&self, reference: &Reference) -> Result<Option<Login>, FetchError> {
        let given = self.find_given(reference.registry(), reference.repository(), true);
        given.map_err(|source| FetchError::Credentials { image: reference.to_string(), source: Box::new(source) })
    }

    pub(crate) fn uses_host_files(&self) -> bool {
        self.host_files
    }

    /// The login for `repository` on `registry` among what the caller gave. `own` tells whether `registry` is the one that the
    /// reference names, and not a mirror of it.
    pub(crate) fn find_given(
        &self,
        registry: &str,
        repository: &str,
        own: bool,
    ) -> Result<Option<Login>, CredentialsError> {
        if let Some(login) = self.login.as_ref().filter(|_| own) {
            return Ok(Some(login.clone()));
        }
        for secret in &self.secrets {
            if let Some(login) = secret.login(registry, repository)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

/// The login for `repository` on `registry` in this machine's own files; files that do not exist are passed over.
pub(crate) async fn find_in_files(
    files: &[PathBuf],
    registry: &str,
    repository: &str,
) -> Result<Option<Login>, CredentialsError> {
    for path in files {
        let Some(file) = AuthFile::read(path)? else { continue };
        if let Some(login) = file.login_or_program(registry, repository).await? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// A parsed auth file.
#[derive(Clone, Deserialize)]
#[serde(default)]
pub struct AuthFile {
    #[serde(skip)]
    origin: String,
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    programs: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

impl Default for AuthFile {
    fn default() -> Self {
        Self { origin: "the pull secret".to_owned(), auths: BTreeMap::new(), programs: BTreeMap::new(), store: None }
    }
}

impl fmt::Debug for AuthFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "AuthFile({}, {} logins)", self.origin, self.auths.len())
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl AuthFile {
    /// The content of a secret of type `kubernetes.io/dockerconfigjson`, or of any auth file. Any bytes are safe to pass.
    pub fn parse(bytes: &[u8], origin: &str) -> Result<Self, CredentialsError> {
        let invalid = |source| CredentialsError::Json { origin: origin.to_owned(), source };
        let mut file: Self = serde_json::from_slice(bytes).map_err(invalid)?;
        file.origin = origin.to_owned();
        Ok(file)
    }

    /// The content of a secret of type `kubernetes.io/dockercfg`: the logins without anything around them.
    pub fn parse_dockercfg(bytes: &[u8], origin: &str) -> Result<Self, CredentialsError> {
        let invalid = |source| CredentialsError::Json { origin: origin.to_owned(), source };
        let auths = serde_json::from_slice(bytes).map_err(invalid)?;
        Ok(Self { origin: origin.to_owned(), auths, ..Self::default() })
    }

    /// `None` if there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, CredentialsError> {
        let fail = |source| CredentialsError::Read { path: path.to_owned(), source };
        match crate::file::read_bounded(path, limits::AUTH_FILE_BYTES_MAX) {
            Ok(bytes) => Self::parse(&bytes, &path.display().to_string()).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error)),
        }
    }

    fn login(&self, registry: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
        let entries = self.auths.iter().filter(|(_, entry)| !entry.is_empty());
        match best_match(entries, registry, repository) {
            Some(entry) => {
                let malformed =
                    || CredentialsError::Encoding { registry: registry.to_owned(), origin: self.origin.clone() };
                Ok(Some(entry.login().ok_or_else(malformed)?))
            }
            None => Ok(None),
        }
    }

    async fn login_or_program(&self, registry: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
        let server = if registry == DOCKER_HUB { "https://index.docker.io/v1/" } else { registry };
        if let Some(program) = best_match(self.programs.iter(), registry, repository) {
            return program::get(program, server).await;
        }
        if let Some(login) = self.login(registry, repository)? {
            return Ok(Some(login));
        }
        match &self.store {
            Some(program) if !program.is_empty() => program::get(program, server).await,
            _ => Ok(None),
        }
    }
}

impl Entry {
    /// Docker leaves empty entries behind for logins that a credential program keeps.
    fn is_empty(&self) -> bool {
        let members = [&self.auth, &self.username, &self.identitytoken, &self.registrytoken];
        members.into_iter().all(|member| member.as_deref().unwrap_or_default().is_empty())
    }

    fn login(&self) -> Option<Login> {
        let set = |member: &Option<String>| member.clone().filter(|value| !value.is_empty());
        if let Some(token) = set(&self.identitytoken) {
            return Some(Login::IdentityToken(token));
        }
        if let Some(token) = set(&self.registrytoken) {
            return Some(Login::RegistryToken(token));
        }
        if let Some(username) = set(&self.username) {
            return Some(Login::Password { username, password: set(&self.password).unwrap_or_default() });
        }
        let decoded = STANDARD.decode(set(&self.auth)?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.split_once(':')?;
        // Docker pads with NUL.
        Some(Login::Password { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }
}

/// The value whose key is the longest that fits `registry/repository`.
fn best_match<'a, V: 'a>(
    entries: impl Iterator<Item = (&'a String, &'a V)>,
    registry: &str,
    repository: &str,
) -> Option<&'a V> {
    entries
        .filter_map(|(key, value)| key_fits(key, registry, repository).map(|length| (length, value)))
        .max_by_key(|(length, _)| *length)
        .map(|(_, value)| value)
}

/// How exactly a key of an auth file fits an image: longer is better, `None` is not at all.
fn key_fits(key: &str, registry: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    // Docker's keys name the API of a registry, not a path inside it.
    let api = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).filter(|host| !host.contains('/'));
    let key = api.unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER_HUB } else { host };
    let host_fits = if host.contains('*') { glob_fits(host, registry) } else { host == registry };
    let rest = repository.strip_prefix(path)?;
    let path_fits = path.is_empty() || rest.is_empty() || rest.starts_with('/');
    (host_fits && path_fits).then_some(path.len() * 1024 + host.len())
}

/// Kubernetes' patterns: `*` stands for any part of one label, so `*.example.com` fits `a.example.com` and not `a.b.example.com`.
fn glob_fits(pattern: &str, host: &str) -> bool {
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    let label_fits = |pattern: &str, label: &str| match pattern.split_once('*') {
        None => pattern == label,
        Some((start, end)) => {
            label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
        }
    };
    patterns.len() == labels.len() && patterns.iter().zip(labels).all(|(pattern, label)| label_fits(pattern, label))
}

#[cfg(test)]
mod tests;
