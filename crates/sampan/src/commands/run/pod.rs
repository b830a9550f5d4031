//! The Pod that a `run` command line means. Pure, but for reading the files that the line names.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{PullPolicy, Restart, RunArgs};
use crate::cli::values::Variable;
use crate::failure::Failure;
use crate::limits::ENV_FILE_BYTES_MAX;

/// The name of the one container.
const CONTAINER: &str = "main";
/// What an instance gets between TERM and KILL, as in docker.
const GRACE_SECONDS: u64 = 10;

/// What a command line means depends on where it is typed.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(super) directory: PathBuf,
    pub(super) environment: HashMap<String, String>,
}

impl Surroundings {
    pub(crate) fn of_this_process() -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")), environment }
    }
}

/// The Pod.
pub(crate) fn pod(args: &RunArgs, name: &str, namespace: &str, surroundings: &Surroundings) -> Result<Value, Failure> {
    let mut metadata = json!({"name": name, "namespace": namespace});
    if !args.label.is_empty() {
        metadata["labels"] = args.label.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    }
    let mut annotations = Map::from_iter([("sampan.dev/created-by".to_owned(), json!("sampan-run"))]);
    if args.rm {
        annotations.insert("sampan.dev/remove-when-finished".to_owned(), json!("true"));
    }
    let mut container = container(args, surroundings)?;
    let mut security = Map::new();
    match args.user.as_deref().map(User::parse).transpose()? {
        Some(User::Numbers(user, group)) => {
            security.insert("runAsUser".to_owned(), json!(user));
            if let Some(group) = group {
                security.insert("runAsGroup".to_owned(), json!(group));
            }
        }
        Some(User::Names(names)) => {
            annotations.insert("sampan.dev/user".to_owned(), json!(names));
        }
        None => {}
    }
    add_privileges(args, &mut security);
    if !security.is_empty() {
        container["securityContext"] = security.into();
    }
    metadata["annotations"] = annotations.into();
    let restart = match args.restart {
        Restart::No => "Never",
        Restart::OnFailure => "OnFailure",
        Restart::Always => "Always",
    };
    let mut spec = json!({"restartPolicy": restart, "terminationGracePeriodSeconds": GRACE_SECONDS});
    if let Some(hostname) = &args.hostname {
        spec["hostname"] = json!(hostname);
    }
    let volumes = volumes(args, surroundings)?;
    if !volumes.is_empty() {
        container["volumeMounts"] = mounts(args);
        spec["volumes"] = volumes.into();
    }
    spec["containers"] = json!([container]);
    Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

fn container(args: &RunArgs, surroundings: &Surroundings) -> Result<Value, Failure> {
    let (image, command) = args.image_and_command.split_first().unwrap_or((const { &String::new() }, &[]));
    let mut container = json!({"name": CONTAINER, "image": image_reference(image, surroundings)?});
    let mut set = |field: &str, value: Value| container[field] = value;
    match (args.entrypoint.as_deref(), command) {
        (None, []) => {}
        (None, command) => set("args", literal_words(command)),
        // An empty entrypoint, as in docker: the command stands alone.
        (Some(""), []) => {
            return Err(Failure::explain("--entrypoint ''", "no command is left", "give one after the image"));
        }
        (Some(""), command) => set("command", literal_words(command)),
        (Some(entrypoint), command) => {
            set("command", json!([literal(entrypoint)]));
            if !command.is_empty() {
                set("args", literal_words(command));
            }
        }
    }
    if let Some(directory) = &args.workdir {
        if !directory.starts_with('/') {
            return Err(Failure::explain(
                "--workdir",
                format_args!("{directory} is no absolute path"),
                "begin it with /",
            ));
        }
        set("workingDir", json!(directory));
    }
    let environment = environment(args, surroundings)?;
    if !environment.is_empty() {
        set("env", environment.into());
    }
    if !args.publish.is_empty() {
        set("ports", ports(args));
    }
    let limits: Map<String, Value> = [("cpu", &args.cpu), ("memory", &args.memory), ("ephemeral-storage", &args.disk)]
        .into_iter()
        .filter_map(|(resource, limit)| Some((resource.to_owned(), json!(limit.as_ref()?))))
        .collect();
    if !limits.is_empty() {
        set("resources", json!({"limits": limits}));
    }
    if args.interactive {
        set("stdin", json!(true));
        set("stdinOnce", json!(true));
    }
    if args.tty {
        set("tty", json!(true));
    }
    let policy = match args.pull {
        PullPolicy::Always => "Always",
        PullPolicy::Missing => "IfNotPresent",
        PullPolicy::Never => "Never",
    };
    set("imagePullPolicy", json!(policy));
    Ok(container)
}

/// A registry's reference as it is, `oci:DIR[:TAG]` and `docker-archive:FILE[:NAME]` with their paths made absolute.
pub(crate) fn image_reference(image: &str, surroundings: &Surroundings) -> Result<String, Failure> {
    if image.starts_with('-') {
        return Err(Failure::explain(image, "there is no such option", "see: sampan run --help"));
    }
    if image.trim().is_empty() {
        return Err(Failure::explain("run", "the image's name is empty", "name one, such as debian:13"));
    }
    if let Some(archive) = image.strip_prefix("docker-archive:") {
        return archive_reference(image, archive, surroundings);
    }
    let Some(layout) = image.strip_prefix("oci:") else { return Ok(image.to_owned()) };
    let is_layout = |directory: &Path| directory.join("index.json").is_file();
    let whole = surroundings.directory.join(layout);
    let split = layout.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let (directory, tag) = match split {
        Some((directory, tag)) if !is_layout(&whole) => (surroundings.directory.join(directory), Some(tag)),
        _ => (whole, None),
    };
    if !is_layout(&directory) {
        return Err(Failure::explain(
            image,
            format_args!("there is no OCI layout in {} (it has no index.json)", directory.display()),
            "name the directory that skopeo copy or buildah push wrote",
        ));
    }
    let directory = directory.canonicalize().unwrap_or(directory);
    Ok(format!("oci:{}{}", utf8(&directory, "oci:")?, tag.map(|tag| format!(":{tag}")).unwrap_or_default()))
}

fn archive_reference(image: &str, archive: &str, surroundings: &Surroundings) -> Result<String, Failure> {
    let (file, name) = archive.split_once(':').map_or((archive, None), |(file, name)| (file, Some(name)));
    let path = surroundings.directory.join(file);
    if !path.is_file() {
        return Err(Failure::explain(
            image,
            format_args!("there is no file {}", path.display()),
            "name the file that docker save or podman save wrote",
        ));
    }
    let path = path.canonicalize().unwrap_or(path);
    let path = utf8(&path, "docker-archive:")?;
    if path.contains(':') {
        return Err(Failure::explain(image, "its path has a colon, after which a name is expected", "move the file"));
    }
    Ok(format!("docker-archive:{path}{}", name.map(|name| format!(":{name}")).unwrap_or_default()))
}

/// Kubernetes replaces `$(NAME)` in commands and variables, and `$$` by `$`; docker's users expect neither.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        literal.push_str(&rest[..start]);
        let dollars = rest[start..].len() - rest[start..].trim_start_matches('$').len();
        rest = &rest[start + dollars..];
        let special = dollars > 1 || rest.starts_with('(');
        literal.extend(std::iter::repeat_n('$', if special { dollars * 2 } else { dollars }));
    }
    literal + rest
}

fn literal_words(words: &[String]) -> Value {
    words.iter().map(|word| literal(word)).collect()
}

/// The variables in the order of their first mention, files first; the last value of each counts.
fn environment(args: &RunArgs, surroundings: &Surroundings) -> Result<Vec<Value>, Failure> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |variable: Variable| {
        let value = variable.value.or_else(|| surroundings.environment.get(&variable.name).cloned());
        let Some(value) = value else { return };
        match variables.iter_mut().find(|(name, _)| *name == variable.name) {
            Some(known) => known.1 = value,
            None => variables.push((variable.name, value)),
        }
    };
    for file in &args.env_file {
        environment_file(&surroundings.directory.join(file))?.into_iter().for_each(&mut set);
    }
    args.env.iter().cloned().for_each(&mut set);
    Ok(variables.into_iter().map(|(name, value)| json!({"name": name, "value": literal(&value)})).collect())
}

fn environment_file(file: &Path) -> Result<Vec<Variable>, Failure> {
    let thing = format!("--env-file {}", file.display());
    let mut content = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(ENV_FILE_BYTES_MAX + 1).read_to_string(&mut content))
        .map_err(|error| Failure::explain(&thing, error, "name a readable file of NAME=VALUE lines"))?;
    if content.len() as u64 > ENV_FILE_BYTES_MAX {
        return Err(Failure::explain(thing, "it is larger than 2 MiB", "no environment can be that large; shorten it"));
    }
    let lines = content.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            line.parse().map_err(|reason: String| Failure::new(format_args!("{thing}: line {number}: {reason}")))
        })
        .collect()
}

fn ports(args: &RunArgs) -> Value {
    let port = |port: &crate::cli::values::Port| {
        let mut value =
            json!({"containerPort": port.container_port, "hostPort": port.host_port, "protocol": port.protocol});
        if let Some(address) = port.host_ip {
            value["hostIP"] = json!(address.to_string());
        }
        value
    };
    args.publish.iter().map(port).collect()
}

fn volumes(args: &RunArgs, surroundings: &Surroundings) -> Result<Vec<Value>, Failure> {
    let volumes = args.volume.iter().enumerate().map(|(index, volume)| {
        let source = surroundings.directory.join(&volume.source);
        let thing = format!("--volume {}", volume.source);
        let source = source
            .canonicalize()
            .map_err(|error| Failure::explain(&thing, error, "create it first, or mend the path"))?;
        Ok(json!({"name": format!("volume-{index}"), "hostPath": {"path": utf8(&source, &thing)?}}))
    });
    volumes.collect()
}

fn mounts(args: &RunArgs) -> Value {
    let mount = |(index, volume): (usize, &crate::cli::values::Volume)| {
        let mut value = json!({"name": format!("volume-{index}"), "mountPath": volume.destination});
        if volume.read_only {
            value["readOnly"] = json!(true);
        }
        value
    };
    args.volume.iter().enumerate().map(mount).collect()
}

fn add_privileges(args: &RunArgs, security: &mut Map<String, Value>) {
    if args.read_only {
        security.insert("readOnlyRootFilesystem".to_owned(), json!(true));
    }
    let names = |names: &[String]| -> Vec<String> {
        names.iter().map(|name| name.to_uppercase().trim_start_matches("CAP_").to_owned()).collect()
    };
    let (add, drop) = (names(&args.cap_add), names(&args.cap_drop));
    let capabilities: Map<String, Value> = [("add", add), ("drop", drop)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(field, names)| (field.to_owned(), json!(names)))
        .collect();
    if !capabilities.is_empty() {
        security.insert("capabilities".to_owned(), capabilities.into());
    }
}

/// What `--user` says.
enum User {
    Numbers(u32, Option<u32>),
    /// Something only the image's own files can tell.
    Names(String),
}

impl User {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let proper =
            |name: &str| !name.is_empty() && !name.contains(|letter: char| letter.is_control() || letter == ':');
        if !proper(user) || group.is_some_and(|group| !proper(group)) {
            return Err(Failure::explain(
                "--user",
                format_args!("{text:?} is no user"),
                "write it like 1000, www-data or 1000:100",
            ));
        }
        match (user.parse(), group.map(str::parse).transpose()) {
            (Ok(user), Ok(group)) => Ok(Self::Numbers(user, group)),
            _ => Ok(Self::Names(text.to_owned())),
        }
    }
}

fn utf8<'path>(path: &'path Path, thing: &str) -> Result<&'path str, Failure> {
    path.to_str().ok_or_else(|| Failure::explain(thing, "its path is not UTF-8", "rename it"))
}

#[cfg(test)]
mod tests;
