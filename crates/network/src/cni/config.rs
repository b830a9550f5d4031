//! A chain of plugins, as the host's administrator writes it down (`*.conflist`, or `*.conf` with one plugin).
//!
//! The CNI specification 1.1, section 1. The first file by name counts, and is read anew for every sandbox: a network may
//! be configured while the service runs.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CniError;
use crate::limits::{CNI_CONFIG_BYTES_MAX, CNI_PLUGINS_MAX};

/// A chain, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    pub(crate) version: String,
    pub(crate) name: String,
    /// The administrator does not want [`super::Cni::check`] to ask.
    pub(crate) no_check: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    /// The name of its program.
    pub(crate) program: String,
    settings: Map<String, Value>,
}

impl Plugin {
    /// Whether the plugin wants this part of what a sandbox asks for.
    pub(crate) fn can(&self, capability: &str) -> bool {
        self.settings.get("capabilities").and_then(|can| can.get(capability)) == Some(&Value::Bool(true))
    }

    /// Whether it has anything to do: it was asked for something that it can, or does its work unasked.
    pub(crate) fn is_wanted(&self, wishes: &Map<String, Value>) -> bool {
        let capabilities = self.settings.get("capabilities").and_then(Value::as_object);
        capabilities.is_none_or(|can| can.is_empty() || wishes.keys().any(|wish| self.can(wish)))
    }

    /// What the plugin is given to read: its settings under the chain's version and name, the part of `wishes` that it can
    /// do something with, and what those before it came to.
    pub(crate) fn input(&self, chain: &Chain, wishes: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut input = self.settings.clone();
        input.remove("capabilities");
        let wanted: Map<String, Value> =
            wishes.iter().filter(|(name, _)| self.can(name)).map(|(name, wish)| (name.clone(), wish.clone())).collect();
        if !wanted.is_empty() {
            input.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
        input.insert("cniVersion".to_owned(), chain.version.clone().into());
        input.insert("name".to_owned(), chain.name.clone().into());
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

/// The chain that counts in a folder, and its text.
pub(crate) fn read(folder: &Path) -> Result<(Chain, String), CniError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CniError::ConfigUnreadable { path, source }
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(CniError::NoConfig(folder.to_owned())),
        entries => entries.map_err(failed(folder))?,
    };
    let is_config = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conflist" | "conf" | "json"))
    };
    let first = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_config).min();
    let Some(path) = first else { return Err(CniError::NoConfig(folder.to_owned())) };
    let mut text = String::new();
    let file = fs::File::open(&path).map_err(failed(&path))?;
    file.take(CNI_CONFIG_BYTES_MAX).read_to_string(&mut text).map_err(failed(&path))?;
    let chain = parse(text.as_bytes()).map_err(|reason| CniError::ConfigInvalid { path, reason })?;
    Ok((chain, text))
}

/// Reads a chain; the error says what is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Chain, String> {
    let Ok(Value::Object(mut top)) = serde_json::from_slice(bytes) else {
        return Err("it is no JSON object (or longer than may be)".to_owned());
    };
    let version = match top.get("cniVersion") {
        Some(Value::String(version)) if super::result::is_version(version) => version.clone(),
        _ => return Err("cniVersion is none of 0.3.0 to 1.1.0".to_owned()),
    };
    let name = match top.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        _ => return Err("name is missing, or not of letters, digits, dots, dashes and underscores".to_owned()),
    };
    let no_check = matches!(top.get("disableCheck"), Some(Value::Bool(true)));
    let plugins = match top.remove("plugins") {
        Some(Value::Array(plugins)) => plugins,
        Some(_) => return Err("plugins is no list".to_owned()),
        None => vec![Value::Object(top)],
    };
    if plugins.is_empty() || plugins.len() > CNI_PLUGINS_MAX {
        return Err(format!("it has {} plugins where 1 to {CNI_PLUGINS_MAX} can be", plugins.len()));
    }
    let plugins = plugins.into_iter().map(|plugin| match plugin {
        Value::Object(settings) => match settings.get("type") {
            Some(Value::String(program)) if is_name(program) => {
                Ok(Plugin { program: program.clone(), settings: settings.clone() })
            }
            _ => Err("a plugin's type is missing, or no name of a program".to_owned()),
        },
        _ => Err("a plugin is no object".to_owned()),
    });
    Ok(Chain { version, name, no_check, plugins: plugins.collect::<Result<_, _>>()? })
}

/// The specification's words for names; what begins with a letter or digit is no `..` and no option.
fn is_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() <= 128
        && name.bytes().all(inner)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_and_single_plugins_are_chains() {
        let list = parse(br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#).unwrap();
        assert_eq!(list.plugins.len(), 2);
        assert!(list.plugins[1].can("portMappings") && !list.plugins[0].can("portMappings"));
        assert!(list.plugins[0].is_wanted(&Map::new()) && !list.plugins[1].is_wanted(&Map::new()));
        let single = parse(br#"{"cniVersion":"0.4.0","name":"n","type":"ptp"}"#).unwrap();
        assert_eq!(single.plugins[0].program, "ptp");
    }

    #[test]
    fn plugins_get_what_they_can_use() {
        let chain = parse(
            br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","capabilities":{"x":true}},{"type":"b"}]}"#,
        )
        .unwrap();
        let wishes = serde_json::json!({"x": [1], "y": 2});
        let Value::Object(wishes) = wishes else { unreachable!() };
        let first = chain.plugins[0].input(&chain, &wishes, None);
        assert_eq!(first, serde_json::json!({"type":"a","cniVersion":"1.0.0","name":"n","runtimeConfig":{"x":[1]}}));
        let second = chain.plugins[1].input(&chain, &wishes, Some(&Value::from(7)));
        assert_eq!(second, serde_json::json!({"type":"b","cniVersion":"1.0.0","name":"n","prevResult":7}));
    }

    #[test]
    fn what_names_no_program_is_refused() {
        for plugin in ["../sh", "/bin/sh", "", "-x", "a b", "..", "a/b"] {
            let text = serde_json::json!({"cniVersion":"1.0.0","name":"n","plugins":[{"type":plugin}]}).to_string();
            assert!(parse(text.as_bytes()).is_err(), "{plugin:?}");
        }
        for text in [
            "",
            "[]",
            "{}",
            r#"{"cniVersion":"9","name":"n","type":"a"}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            drop(parse(&bytes));
        }
    }
}
