//! Who is believed: the keys that sign what is published about images, and the keys whose signatures count.
//!
//! ```text
//! DATA_DIR/keys/
//!   node.key             this node's own, made when it first signs or is asked for; readable by its owner only
//!   fleet.key            a key that several machines share: whoever holds it signs with it and believes it
//!   trusted/NAME.pub     public keys of others
//! ```
//!
//! Files are text of one line. They are read anew at each use: whoever adds or removes a key need not restart anything.
//! Signatures are Ed25519 (RFC 8032) by the library that TLS uses here, over bytes that say what they are about
//! ([`crate::publish`]). Invariant: a private key never leaves its file but to sign.

mod file;
#[cfg(test)]
mod tests;

use file::{read_line, write_secret};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const PUBLIC_PREFIX: &str = "sampan-ed25519-public:";
const SECRET_PREFIX: &str = "sampan-ed25519-secret:";
const NAME_BYTES_MAX: usize = 63;
/// Trusted keys that are looked at: nobody keeps track of more.
const TRUSTED_MAX: usize = 1024;

/// What is wrong with a key or its file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "this is no public key; write it as {PUBLIC_PREFIX} and 64 hexadecimal digits, as `sampan image keys list` shows it"
    )]
    Public,
    #[error("the key in {} cannot be used; remove the file to have a new one made", .0.display())]
    Secret(PathBuf),
    #[error("{0:?} is no name for a key; use 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and ., with a letter or digit first")]
    Name(String),
    #[error("there is a key named {0} already; remove it first with: sampan image keys remove {0}")]
    Taken(String),
    #[error("there is no trusted key named {0:?}; see: sampan image keys list")]
    Unknown(String),
    #[error("this machine has a fleet key already; remove {} first", .0.display())]
    FleetTaken(PathBuf),
    #[error("cannot {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("this machine gives no random numbers")]
    Random,
}

/// Why something published is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("it is not signed")]
    Unsigned,
    #[error("it is signed by nobody whom this machine trusts ({}); to trust them: sampan image keys add NAME KEY", ids(.0))]
    Unknown(Vec<KeyId>),
    #[error("its signature by {0} is not right: it was changed after it was signed")]
    Forged(KeyId),
}

fn ids(ids: &[KeyId]) -> String {
    ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn id(&self) -> KeyId {
        let hash = blake3::hash(&self.0);
        KeyId(hash.as_bytes().first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PUBLIC_PREFIX}{}", file::hex(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().strip_prefix(PUBLIC_PREFIX).ok_or(KeyError::Public)?;
        file::unhex(digits).map(Self).ok_or(KeyError::Public)
    }
}

/// A short name of a public key: eight bytes of its BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&file::hex(&self.0))
    }
}

/// One signature: whose, and its bytes. As text, `KEYID:SIGNATURE` in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    pub key: KeyId,
    bytes: [u8; 64],
}

impl fmt::Display for Signature {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.key, file::hex(&self.bytes))
    }
}

impl Signature {
    /// Signatures out of a text of several, separated by blanks; what is none is passed over.
    pub fn read_all(text: &str) -> Vec<Self> {
        let read = |word: &str| {
            let (key, bytes) = word.split_once(':')?;
            Some(Self { key: KeyId(file::unhex(key)?), bytes: file::unhex(bytes)? })
        };
        text.split_ascii_whitespace().take(crate::limits::SIGNATURES_MAX).filter_map(read).collect()
    }
}

/// What a key is to this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRole {
    Node,
    Fleet,
    Trusted,
}

impl KeyRole {
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fleet => "fleet",
            Self::Trusted => "trusted",
        }
    }
}

/// A key that this machine believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    pub name: String,
    pub role: KeyRole,
    pub public: PublicKey,
}

/// The keys of this machine. Cheap to clone. All methods read or write small files.
#[derive(Debug, Clone)]
pub struct KeyRing {
    folder: PathBuf,
}

impl KeyRing {
    /// The keys below a data directory; nothing is made before it is needed.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("keys") }
    }

    /// Every key that is believed, the node's own first, which is made now if there is none.
    pub fn list(&self) -> Result<Vec<KnownKey>, KeyError> {
        let own = |pair: &Ed25519KeyPair| public_of(pair).ok_or_else(|| KeyError::Secret(self.folder.clone()));
        let node = self.node()?;
        let mut known = vec![KnownKey { name: "node".to_owned(), role: KeyRole::Node, public: own(&node)? }];
        if let Some(fleet) = self.secret(&self.fleet_path())? {
            known.push(KnownKey { name: "fleet".to_owned(), role: KeyRole::Fleet, public: own(&fleet)? });
        }
        known.extend(self.trusted()?);
        Ok(known)
    }

    /// Makes the key that a fleet shares. Its file is copied to the other machines by hand.
    pub fn generate_fleet(&self) -> Result<(PublicKey, PathBuf), KeyError> {
        let path = self.fleet_path();
        if path.exists() {
            return Err(KeyError::FleetTaken(path));
        }
        self.generate(&path)?;
        let pair = self.secret(&path)?.ok_or_else(|| KeyError::Secret(path.clone()))?;
        Ok((public_of(&pair).ok_or_else(|| KeyError::Secret(path.clone()))?, path))
    }

    /// Believes another's key from now on.
    pub fn add(&self, name: &str, public: PublicKey) -> Result<(), KeyError> {
        let path = self.trusted_path(name)?;
        if path.exists() {
            return Err(KeyError::Taken(name.to_owned()));
        }
        self.make_folder(&self.folder.join("trusted"))?;
        fs::write(&path, format!("{public}\n")).map_err(|source| KeyError::File { action: "write", path, source })
    }

    /// Believes it no more.
    pub fn remove(&self, name: &str) -> Result<(), KeyError> {
        let path = self.trusted_path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(KeyError::Unknown(name.to_owned())),
            removed => removed.map_err(|source| KeyError::File { action: "remove", path, source }),
        }
    }

    /// Signs with every key that is this machine's own.
    pub fn sign(&self, statement: &[u8]) -> Result<Vec<Signature>, KeyError> {
        let mut pairs = vec![self.node()?];
        pairs.extend(self.secret(&self.fleet_path())?);
        let sign = |pair: &Ed25519KeyPair| {
            let bytes = pair.sign(statement).as_ref().try_into().ok()?;
            Some(Signature { key: public_of(pair)?.id(), bytes })
        };
        Ok(pairs.iter().filter_map(sign).collect())
    }

    /// Whether anybody whom this machine believes has signed `statement`. A wrong signature by one of them is an error even
    /// where another's is right.
    pub fn check(&self, statement: &[u8], signatures: &[Signature]) -> Result<Result<KnownKey, TrustError>, KeyError> {
        if signatures.is_empty() {
            return Ok(Err(TrustError::Unsigned));
        }
        let known = self.list()?;
        let mut believed = None;
        for signature in signatures {
            let Some(key) = known.iter().find(|key| key.public.id() == signature.key) else { continue };
            let verified = UnparsedPublicKey::new(&ED25519, key.public.0).verify(statement, &signature.bytes);
            if verified.is_err() {
                return Ok(Err(TrustError::Forged(signature.key)));
            }
            believed = believed.or_else(|| Some(key.clone()));
        }
        Ok(believed.ok_or_else(|| TrustError::Unknown(signatures.iter().map(|signature| signature.key).collect())))
    }

    fn trusted(&self) -> Result<Vec<KnownKey>, KeyError> {
        let folder = self.folder.join("trusted");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(KeyError::File { action: "read", path: folder, source }),
        };
        let mut known = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()).take(TRUSTED_MAX) {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".pub"));
            let Some(name) = name.filter(|name| is_name(name)) else { continue };
            match read_line(&path).ok().and_then(|line| line.parse().ok()) {
                Some(public) => known.push(KnownKey { name: name.to_owned(), role: KeyRole::Trusted, public }),
                None => tracing::warn!(file = %path.display(), "this is no public key; it is passed over"),
            }
        }
        known.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(known)
    }

    fn fleet_path(&self) -> PathBuf {
        self.folder.join("fleet.key")
    }

    fn trusted_path(&self, name: &str) -> Result<PathBuf, KeyError> {
        if !is_name(name) || matches!(name, "node" | "fleet") {
            return Err(KeyError::Name(name.to_owned()));
        }
        Ok(self.folder.join("trusted").join(format!("{name}.pub")))
    }

    /// The node's own key, made if there is none.
    fn node(&self) -> Result<Ed25519KeyPair, KeyError> {
        let path = self.folder.join("node.key");
        if let Some(pair) = self.secret(&path)? {
            return Ok(pair);
        }
        self.generate(&path)?;
        self.secret(&path)?.ok_or(KeyError::Secret(path))
    }

    fn secret(&self, path: &Path) -> Result<Option<Ed25519KeyPair>, KeyError> {
        let line = match read_line(path) {
            Ok(line) => line,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KeyError::File { action: "read", path: path.to_owned(), source }),
        };
        let seed: Option<[u8; 32]> = line.trim().strip_prefix(SECRET_PREFIX).and_then(file::unhex);
        let pair = seed.and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok());
        pair.map(Some).ok_or_else(|| KeyError::Secret(path.to_owned()))
    }

    fn generate(&self, path: &Path) -> Result<(), KeyError> {
        self.make_folder(&self.folder)?;
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_unspecified| KeyError::Random)?;
        let line = format!("{SECRET_PREFIX}{}\n", file::hex(&seed));
        write_secret(path, &line).map_err(|source| KeyError::File { action: "write", path: path.to_owned(), source })
    }

    fn make_folder(&self, folder: &Path) -> Result<(), KeyError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| KeyError::File { action: "create", path: folder.to_owned(), source })
    }
}

fn public_of(pair: &Ed25519KeyPair) -> Option<PublicKey> {
    pair.public_key().as_ref().try_into().ok().map(PublicKey)
}

fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().next().is_some_and(is_plain)
        && name.bytes().all(|byte| is_plain(byte) || matches!(byte, b'-' | b'.'))
}
