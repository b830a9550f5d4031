//! Which of the platforms that an image offers fits a machine, and how well.
//!
//! The rule: same operating system, same architecture, and a variant that the machine can execute; of those the highest
//! variant. 32-bit images are not offered to 64-bit machines: the system call filter of a sandbox knows one architecture.
//! Sources: OCI image specification, image-index.md; the variants of containerd's `platforms` package.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in Go's names (`linux`, `amd64`, `v3`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "crate::json::null_as_default")]
    pub variant: String,
}

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// The machine that this program runs on.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            same => (same, ""),
        };
        Self::new(std::env::consts::OS, architecture, variant)
    }

    /// How well an image made for `offered` runs here: `None` if it does not, higher is better.
    pub fn fit(&self, offered: &Platform) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let (here, there) = (self.level(), offered.level());
        match (here, there) {
            (Some(here), Some(there)) => (there <= here).then_some(there),
            // Variants that nobody has numbered must be the same.
            _ => (self.variant == offered.variant).then_some(0),
        }
    }

    /// The number in a variant such as `v7`, with each architecture's unwritten default; `None` if it has no such form.
    fn level(&self) -> Option<u32> {
        match (self.architecture.as_str(), self.variant.as_str()) {
            ("amd64", "") => Some(1),
            ("arm64", "") => Some(8),
            ("arm", "") => Some(7),
            (_, "") => Some(0),
            // arm64 has minor versions too: v8.2 is above v8.
            (_, variant) => {
                let (major, minor) = variant.strip_prefix('v')?.split_once('.').unwrap_or((variant.get(1..)?, "0"));
                let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
                (major < 100 && minor < 100).then_some(if minor == 0 {
                    major
                } else {
                    major.saturating_mul(100).saturating_add(minor)
                })
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(out, "/{}", self.variant) }
    }
}

/// The x86-64 micro-architecture level (psABI): what a `v2`, `v3` or `v4` image may take for granted.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    let v2 =
        is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("ssse3");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, _, _) => "v2",
        _ => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    "v1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_variant_that_runs_is_the_best_fit() {
        let host = Platform::new("linux", "amd64", "v3");
        let fit = |architecture, variant| host.fit(&Platform::new("linux", architecture, variant));
        assert!(fit("amd64", "v3") > fit("amd64", "v2"));
        assert_eq!(fit("amd64", ""), fit("amd64", "v1"));
        assert_eq!(fit("amd64", "v4"), None);
        assert_eq!(fit("386", ""), None);
        assert_eq!(host.fit(&Platform::new("windows", "amd64", "")), None);
    }

    #[test]
    fn arm_variants_default_as_their_architectures_do() {
        let host = Platform::new("linux", "arm64", "v8");
        assert!(host.fit(&Platform::new("linux", "arm64", "")).is_some());
        assert!(host.fit(&Platform::new("linux", "arm64", "v8")).is_some());
        assert!(host.fit(&Platform::new("linux", "arm64", "v8.2")).is_none());
        assert!(host.fit(&Platform::new("linux", "arm64", "v9")).is_none());
        let old = Platform::new("linux", "arm", "v6");
        assert!(old.fit(&Platform::new("linux", "arm", "")).is_none());
    }

    #[test]
    fn this_machine_runs_its_own_images() {
        let host = Platform::host();
        assert!(host.fit(&host).is_some(), "{host}");
    }
}
