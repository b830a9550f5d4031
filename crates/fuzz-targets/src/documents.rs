//! Small documents and words: what registries, users and the machine itself write.

use sampan_kit::quantity::Quantity;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Document;
use sampan_oci::platform::Platform;
use sampan_oci::reference::{ImageSource, Reference};
use sampan_registry::AuthFile;

/// Media types under which a registry may serve a document.
const DECLARED: [Option<&str>; 3] = [
    None,
    Some("application/vnd.oci.image.index.v1+json"),
    Some("application/vnd.docker.distribution.manifest.v2+json"),
];

/// A manifest or an index, under each declared media type.
pub fn manifest(bytes: &[u8]) -> bool {
    let platform = Platform::new("linux", "amd64", "");
    let mut accepted = false;
    for declared in DECLARED {
        match Document::parse(bytes, declared) {
            Ok(Document::Manifest(manifest)) => {
                std::hint::black_box(manifest.layers_bytes());
                accepted = true;
            }
            Ok(Document::Index(index)) => {
                std::hint::black_box(index.select(&platform).is_ok());
                accepted = true;
            }
            Err(refused) => {
                std::hint::black_box(refused.to_string());
            }
        }
    }
    accepted
}

/// An image's configuration.
pub fn image_config(bytes: &[u8]) -> bool {
    let Ok(config) = ImageConfig::parse(bytes) else { return false };
    std::hint::black_box((config.config.environment().count(), config.config.command_line(&[], &["x".to_owned()])));
    true
}

/// What a person calls an image; what is accepted must mean the same when it is written out and read again.
pub fn reference(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    std::hint::black_box((text.parse::<ImageSource>().is_ok(), text.parse::<Digest>().is_ok()));
    let Ok(reference) = text.parse::<Reference>() else { return false };
    for written in [reference.to_string(), reference.familiar()] {
        assert!(written.parse::<Reference>().as_ref() == Ok(&reference), "{written:?} does not mean what it came from");
    }
    true
}

/// A file of logins, in both forms.
pub fn auth_file(bytes: &[u8]) -> bool {
    let full = AuthFile::parse(bytes, "fuzzed").is_ok();
    AuthFile::parse_dockercfg(bytes, "fuzzed").is_ok() || full
}

/// A host's resolver configuration, which is rewritten for sandboxes; any bytes are.
pub fn resolv_conf(bytes: &[u8]) -> bool {
    let text = sampan_network::fuzz_resolv_conf(bytes);
    let loopback = text.lines().any(|line| line.starts_with("nameserver 127."));
    assert!(!loopback, "a sandbox is told of a server on loopback");
    true
}

/// A chain of network plugins, or what one of them printed.
pub fn cni(bytes: &[u8]) -> bool {
    sampan_network::fuzz_cni(bytes)
}

/// A Kubernetes quantity.
pub fn quantity(bytes: &[u8]) -> bool {
    Quantity::parse(&String::from_utf8_lossy(bytes)).is_ok()
}

/// A pod or a node as the scheduler reads it.
pub fn placement(bytes: &[u8]) -> bool {
    let Ok(object) = serde_json::from_slice(bytes) else { return false };
    let (demand, node) = (sampan_placement::demand(&object), sampan_placement::node(&object));
    if let (Ok(demand), Ok(node)) = (&demand, &node) {
        std::hint::black_box(sampan_placement::place(std::slice::from_ref(node), demand));
    }
    demand.is_ok() || node.is_ok()
}
