//! The image configuration: how to run the image, what it was made for, and the diffIDs of its layers.
//!
//! Source: OCI image specification, config.md; Docker's configuration has the same members. [`ImageConfig`] is read from JSON
//! only (`null` means empty): whoever keeps it keeps the bytes and reads them again.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::json::null_as_default;
use crate::limits::{CONFIG_BYTES_MAX, LAYERS_MAX};
use crate::platform::Platform;
use crate::quote::Quote;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "the image configuration has {bytes} bytes, more than the {CONFIG_BYTES_MAX} allowed; rebuild the image with a shorter history"
    )]
    TooLarge { bytes: u64 },
    #[error("the image configuration is not valid; rebuild or re-push the image")]
    Json(#[source] serde_json::Error),
    #[error("the image configuration has a root file system of type \"{}\"; only \"layers\" is supported", Quote(.0))]
    RootFileSystem(String),
    #[error("the image has {0} layers, more than the {LAYERS_MAX} allowed; rebuild it with fewer")]
    TooManyLayers(usize),
}

/// A whole image configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    #[serde(deserialize_with = "null_as_default")]
    pub created: String,
    #[serde(deserialize_with = "null_as_default")]
    pub author: String,
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(deserialize_with = "null_as_default")]
    pub config: RunConfig,
    pub rootfs: RootFileSystem,
    #[serde(deserialize_with = "null_as_default")]
    pub history: Vec<History>,
}

/// What to run and how, unless the caller says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`, or empty for root.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// `NAME=value`; see [`RunConfig::environment`].
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// `80/tcp`, `53/udp`, `80`.
    #[serde(deserialize_with = "keys", serialize_with = "empty_objects")]
    pub exposed_ports: BTreeSet<String>,
    /// Paths that the image declares as volumes.
    #[serde(deserialize_with = "keys", serialize_with = "empty_objects")]
    pub volumes: BTreeSet<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `TERM` or `15`; empty means SIGTERM.
    #[serde(deserialize_with = "null_as_default")]
    pub stop_signal: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFileSystem {
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(deserialize_with = "null_as_default")]
    pub created: String,
    #[serde(deserialize_with = "null_as_default")]
    pub created_by: String,
    #[serde(deserialize_with = "null_as_default")]
    pub author: String,
    #[serde(deserialize_with = "null_as_default")]
    pub comment: String,
    #[serde(deserialize_with = "null_as_default")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads and checks a configuration; any bytes are safe to pass.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { bytes: bytes.len() as u64 });
        }
        let config: Self = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        // Some builders of images without layers leave the type out.
        if config.rootfs.kind != "layers" && !(config.rootfs.kind.is_empty() && config.rootfs.diff_ids.is_empty()) {
            return Err(ConfigError::RootFileSystem(config.rootfs.kind));
        }
        if config.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(ConfigError::TooManyLayers(config.rootfs.diff_ids.len()));
        }
        Ok(config)
    }
}

impl RunConfig {
    /// The environment as pairs; a name without `=` has an empty value.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")))
    }

    /// The command line under Kubernetes' rules: `command` replaces the entrypoint and drops the image's Cmd, `args` replaces
    /// Cmd. Empty means not given. The result is empty when there is nothing to run.
    pub fn command_line(&self, command: &[String], args: &[String]) -> Vec<String> {
        let (entrypoint, arguments) = match (command, args) {
            ([], []) => (self.entrypoint.as_slice(), self.cmd.as_slice()),
            ([], args) => (self.entrypoint.as_slice(), args),
            (command, args) => (command, args),
        };
        entrypoint.iter().chain(arguments).cloned().collect()
    }
}

/// The keys of an object whose values mean nothing (`{"80/tcp": {}}`).
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn empty_objects<S: Serializer>(keys: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Empty {}
    let mut map = serializer.serialize_map(Some(keys.len()))?;
    for key in keys {
        map.serialize_entry(key, &Empty {})?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    const EXAMPLE: &str = r#"{
        "created": "2026-01-01T00:00:00Z", "architecture": "arm64", "variant": "v8", "os": "linux",
        "config": {"User": "www:www", "Env": ["PATH=/bin", "A=b=c", "BARE"], "Entrypoint": ["/init"], "Cmd": ["serve", "-v"],
            "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}, "53/udp": null}, "Volumes": {"/data": {}}, "Labels": null,
            "StopSignal": "SIGQUIT", "Healthcheck": {"Test": ["NONE"]}, "OnBuild": null},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},
        "history": [{"created_by": "COPY . .", "comment": "buildkit"}, {"empty_layer": true}]
    }"#;

    #[test]
    fn every_member_that_matters_is_read() {
        let config = ImageConfig::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64/v8");
        let run = &config.config;
        assert_eq!(run.environment().collect::<Vec<_>>(), [("PATH", "/bin"), ("A", "b=c"), ("BARE", "")]);
        assert_eq!(run.exposed_ports.iter().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!(
            (run.user.as_str(), run.working_dir.as_str(), run.stop_signal.as_str()),
            ("www:www", "/srv", "SIGQUIT")
        );
        assert_eq!(config.rootfs.diff_ids.len(), 1);
        assert!(config.history[1].empty_layer);
        let written = serde_json::to_vec(&config).unwrap();
        assert_eq!(ImageConfig::parse(&written).unwrap(), config);
    }

    #[test]
    fn the_command_line_follows_kubernetes() {
        let run = ImageConfig::parse(EXAMPLE.as_bytes()).unwrap().config;
        let line = |command: &[&str], args: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            run.command_line(&owned(command), &owned(args)).join(" ")
        };
        assert_eq!(line(&[], &[]), "/init serve -v");
        assert_eq!(line(&[], &["x"]), "/init x");
        assert_eq!(line(&["sh"], &[]), "sh");
        assert_eq!(line(&["sh"], &["-c"]), "sh -c");
        assert!(RunConfig::default().command_line(&[], &[]).is_empty());
    }

    #[test]
    fn bad_configurations_are_refused() {
        let message = |text: &str| ImageConfig::parse(text.as_bytes()).unwrap_err().to_string();
        expect!["the image configuration is not valid; rebuild or re-push the image"].assert_eq(&message("{"));
        expect![[r#"the image configuration has a root file system of type "zfs"; only "layers" is supported"#]]
            .assert_eq(&message(r#"{"rootfs":{"type":"zfs"}}"#));
        let deep = "[".repeat(100_000);
        assert!(ImageConfig::parse(format!(r#"{{"config":{deep}"#).as_bytes()).is_err());
        assert!(matches!(ImageConfig::parse(&vec![b' '; CONFIG_BYTES_MAX + 1]), Err(ConfigError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn mangled_configurations_never_panic(at in 0..EXAMPLE.len(), byte in any::<u8>(), cut in 0..EXAMPLE.len()) {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            bytes[at] = byte;
            ImageConfig::parse(&bytes).ok();
            ImageConfig::parse(&bytes[..cut]).ok();
        }
    }
}
