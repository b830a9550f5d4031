//! Our own certificate authority: a key on disk, certificates made anew at every start, and the kubeconfig that names them.
//!
//! Taking the directory away and restarting revokes everything that was ever given out.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::json;

use crate::limits::CERTIFICATE_YEARS;
use crate::server::{StartError, TlsConfig};

/// What TLS needs of the directory.
pub(super) struct Pki {
    pub(super) authority: CertificateDer<'static>,
    pub(super) server: Identity,
    pub(super) token: String,
}

pub(super) struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivatePkcs8KeyDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

impl Pki {
    /// Reads what is there, makes what is missing, and writes the kubeconfig.
    pub(super) fn open(config: &TlsConfig, address: SocketAddr) -> Result<Self, StartError> {
        Self::try_open(config, address).map_err(|source| StartError::Pki { path: config.pki_dir.clone(), source })
    }

    fn try_open(config: &TlsConfig, address: SocketAddr) -> Result<Self, Fault> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.pki_dir)?;
        let key = kept(&config.pki_dir.join("ca.key"), || Ok(KeyPair::generate()?.serialize_pem()))?;
        let issuer = Issuer::new(authority_params()?, KeyPair::from_pem(&key)?);
        // The same key and name each time: certificates that were given out before stay good.
        let pem = kept(&config.pki_dir.join("ca.crt"), || Ok(authority_params()?.self_signed(issuer.key())?.pem()))?;
        let authority = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())
            .map_err(|error: rustls::pki_types::pem::Error| format!("ca.crt is damaged: {error:?}"))?;
        let token = kept(&config.pki_dir.join("token"), || {
            Ok(format!(
                "{}{}{}{}",
                sampan_kit::id::short()?,
                sampan_kit::id::short()?,
                sampan_kit::id::short()?,
                sampan_kit::id::short()?
            ))
        })?;

        let ip = address.ip().to_string();
        let names = vec!["localhost".to_owned(), "kubernetes".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), ip];
        let server = issue(&issuer, "sampan", None, ExtendedKeyUsagePurpose::ServerAuth, names)?;
        let client =
            issue(&issuer, "sampan-admin", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth, Vec::new())?;
        write_secret(&config.kubeconfig, &kubeconfig(address, &pem, &client))?;
        Ok(Self { authority, server, token: token.trim().to_owned() })
    }
}

fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "sampan-authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    // An authority without end: it is taken away, not waited for.
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    Ok(params)
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    group: Option<&str>,
    purpose: ExtendedKeyUsagePurpose,
    alternative_names: Vec<String>,
) -> Result<Identity, Fault> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(alternative_names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    let year = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year();
    // From last year, for clocks that are not right yet.
    params.not_before = rcgen::date_time_ymd(i32::from(year) - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(i32::from(year.saturating_add(CERTIFICATE_YEARS)), 1, 1);
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Identity {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        certificate: certificate.into(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()),
    })
}

fn kubeconfig(address: SocketAddr, authority: &str, client: &Identity) -> String {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sampan", "cluster": {"server": format!("https://{address}"), "certificate-authority-data": encode(authority)}}],
        "users": [{"name": "sampan-admin", "user": {
            "client-certificate-data": encode(&client.certificate_pem),
            "client-key-data": encode(&client.key_pem),
        }}],
        "contexts": [{"name": "sampan", "context": {"cluster": "sampan", "user": "sampan-admin", "namespace": "default"}}],
        "current-context": "sampan",
    });
    // JSON is YAML, and needs no writer of its own.
    format!("{config:#}\n")
}

/// A file's text; made and written if it is not there.
fn kept(path: &Path, make: impl FnOnce() -> Result<String, Fault>) -> Result<String, Fault> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = make()?;
            write_secret(path, &text)?;
            Ok(text)
        }
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

/// Writes a file for the owner's eyes only, whole or not at all.
fn write_secret(path: &Path, text: &str) -> Result<(), Fault> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    Ok(())
}
