//! Chores of the repository, run as `cargo xtask NAME`.
//!
//! Each chore is a module with one entry; this file only chooses. Nothing here is part of the product.

mod bench;
mod critest;
mod fuzz;
mod kubelet;
mod storm;
mod tidy;
mod vm;

use std::io::Write;
use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo xtask tidy | bench [image|runtime] [OPTION…] | fuzz-smoke [--seconds N] [TARGET] | storm [runtime|crowd|neighbour] [OPTION…] | critest [OPTION…] | kubelet | vm [OPTION…]

  tidy        check layers, sources, licences, duplicate crates and papers
  bench       measure beside containerd, podman and runc; see cargo xtask bench --help
  bench image measure cold starts of real images beside the lazy loaders; see cargo xtask bench image --help
  bench runtime measure pods and containers beside containerd and runc; see cargo xtask bench runtime --help
  fuzz-smoke  feed every parser of foreign bytes its corpus and changes of it, for 10 seconds in all
  storm       kill the service again and again under readers of arriving images, while pods come and go, or
              under hundreds of containers, or starve a pod by its neighbour; see cargo xtask storm --help
  critest     Kubernetes' tests of container runtimes against the service; see cargo xtask critest --help
  kubelet     a stock kubelet with a static pod on the service; see cargo xtask kubelet --help
  vm          try the service on Debian's kernels in an emulated machine; see cargo xtask vm --help";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut out = std::io::stdout().lock();
    match arguments.as_slice() {
        ["tidy"] => tidy::run(&mut out),
        ["bench", arguments @ ..] => bench::run(arguments),
        ["fuzz-smoke", arguments @ ..] => fuzz::smoke(arguments),
        ["storm", arguments @ ..] => storm::run(arguments),
        ["critest", arguments @ ..] => critest::run(arguments),
        ["kubelet", arguments @ ..] => kubelet::run(arguments),
        ["vm", arguments @ ..] => vm::run(arguments),
        [] | ["help" | "--help" | "-h"] => {
            writeln!(out, "{USAGE}")?;
            Ok(ExitCode::SUCCESS)
        }
        _ => anyhow::bail!("unknown chore `{}`\n{USAGE}", arguments.join(" ")),
    }
}
