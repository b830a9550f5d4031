//! A registry of the smallest kind, over real HTTP: blobs by digest, with ranges, and with every fault that a test wants.

use super::layout::LayerBytes;
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use serde_json::json;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Every answer is this status.
    Status(u16),
    /// Ranges are ignored.
    Whole,
    /// Every byte at an offset divisible by 1,000 is another.
    Corrupt,
    /// Bodies end after so many bytes.
    Cut(usize),
    /// Nothing is given without [`LOGIN`].
    Login,
    /// Blobs are asked for and never come.
    Silence,
}

/// User and password.
pub(crate) const LOGIN: (&str, &str) = ("user", "password");
/// The same as HTTP's basic authentication has it.
const BASIC: &str = "Basic dXNlcjpwYXNzd29yZA==";

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    /// By path.
    documents: Mutex<HashMap<String, (String, Vec<u8>)>>,
    fault: Mutex<Fault>,
    blob_bytes: AtomicU64,
    requests: AtomicU64,
    config_bytes: AtomicU64,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            documents: Mutex::default(),
            fault: Mutex::new(Fault::None),
            blob_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            config_bytes: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        let serving = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                connections.spawn(async move { serve(stream, &shared).await.ok() });
            }
        });
        Self { address, shared, _tasks: tasks }
    }

    /// Takes a blob of `repository` in.
    pub(crate) fn put_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/blobs/{digest}");
        let document = ("application/octet-stream".to_owned(), bytes.to_vec());
        self.shared.documents.lock().unwrap().insert(path, document);
        digest
    }

    /// Gives a blob out no longer.
    pub(crate) fn remove_blob(&self, repository: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
        self.shared.documents.lock().unwrap().remove(&path);
    }

    /// Takes a manifest in, under a tag and under its digest.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let mut documents = self.shared.documents.lock().unwrap();
        for name in [tag.to_owned(), Digest::of(bytes).to_string()] {
            let document = (media_type.to_owned(), bytes.to_vec());
            documents.insert(format!("/v2/{repository}/manifests/{name}"), document);
        }
    }

    /// Takes a whole image in, and gives its reference.
    pub(crate) fn put_image(&self, repository: &str, tag: &str, layers: &[LayerBytes]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": Platform::host().architecture, "os": "linux", "config": {"Cmd": [tag]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = self.put_blob(repository, bytes);
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
        };
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": blob("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| blob(layer.media_type, &layer.bytes)).collect::<Vec<_>>(),
        });
        self.put_manifest(repository, tag, media_type, manifest.to_string().as_bytes());
        self.shared.config_bytes.store(config.len() as u64, Ordering::Relaxed);
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Bytes of the configuration of the last image that was put in.
    pub(crate) fn last_config_bytes(&self) -> u64 {
        self.shared.config_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn fault(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Bytes of blobs that were sent.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.shared.blob_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut range, mut is_known) = (String::new(), None, false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line if first.is_empty() => first = line.to_owned(),
                line => {
                    range = asked_range(line).or(range);
                    is_known |= line.split_once(':').is_some_and(|(_, value)| value.trim() == BASIC);
                }
            }
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        shared.requests.fetch_add(1, Ordering::Relaxed);
        if path.contains("/blobs/") && *shared.fault.lock().unwrap() == Fault::Silence {
            return std::future::pending().await;
        }
        let (head, body, cut) = if !is_known && *shared.fault.lock().unwrap() == Fault::Login {
            let head = "HTTP/1.1 401 X\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
            (head.to_owned(), Vec::new(), None)
        } else {
            answer(shared, path, range)
        };
        stream.write_all(head.as_bytes()).await?;
        if method == "GET" {
            let sent = cut.map_or(&body[..], |cut| &body[..body.len().min(cut)]);
            if path.contains("/blobs/") {
                shared.blob_bytes.fetch_add(sent.len() as u64, Ordering::Relaxed);
            }
            stream.write_all(sent).await?;
            if sent.len() < body.len() {
                stream.flush().await?;
                return Ok(());
            }
        }
        stream.flush().await?;
    }
}

fn asked_range(line: &str) -> Option<Range<usize>> {
    let (name, value) = line.split_once(':')?;
    let value = Some(value.trim()).filter(|_| name.eq_ignore_ascii_case("range"))?;
    let (start, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some(start.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

fn answer(shared: &Shared, path: &str, range: Option<Range<usize>>) -> (String, Vec<u8>, Option<usize>) {
    let fault = *shared.fault.lock().unwrap();
    let status = |code: u16| (format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n"), Vec::new(), None);
    if path == "/v2/" {
        return status(200);
    }
    let is_blob = path.contains("/blobs/");
    if let Fault::Status(code) = fault
        && is_blob
    {
        return status(code);
    }
    let document = shared.documents.lock().unwrap().get(path).cloned();
    let Some((media_type, mut bytes)) = document else { return status(404) };
    let total = bytes.len();
    if fault == Fault::Corrupt && is_blob {
        bytes.iter_mut().step_by(1000).for_each(|byte| *byte ^= 0x55);
    }
    let cut = match fault {
        Fault::Cut(bytes) if is_blob => Some(bytes),
        _ => None,
    };
    let range = range.filter(|range| fault != Fault::Whole && range.end <= total);
    let digest = path.rsplit('/').next().filter(|name| name.starts_with("sha256:")).map(str::to_owned);
    let digest = digest.unwrap_or_else(|| Digest::of(&bytes).to_string());
    let common = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n");
    match range {
        Some(range) => {
            let body = bytes[range.clone()].to_vec();
            let head = format!(
                "HTTP/1.1 206 X\r\nContent-Range: bytes {}-{}/{total}\r\nContent-Length: {}\r\n{common}\r\n",
                range.start,
                range.end - 1,
                body.len()
            );
            (head, body, cut)
        }
        None => (format!("HTTP/1.1 200 X\r\nContent-Length: {total}\r\n{common}\r\n"), bytes, cut),
    }
}
