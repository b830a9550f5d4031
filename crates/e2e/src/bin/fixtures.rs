//! Builds the real test images and pushes them to a registry: for `quickstart.sh`, the benchmarks and curious people.
#![allow(clippy::print_stdout, reason = "the reference it prints is its result")]

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use sampan_e2e::fixtures::registry::Target;
use sampan_e2e::fixtures::{Image, busybox, debian, real, variants};

/// Builds an image from Debian packages (once; it is cached) and pushes it to a registry; prints its reference.
#[derive(Parser)]
struct Arguments {
    /// Which image.
    image: Name,
    /// The registry's host and port; it must speak plain HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    registry: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Debian, Python and NumPy: what `quickstart.sh` runs.
    Quickstart,
    /// Debian, Python and SciPy, about 900 MB: what pulls are measured with.
    Bench,
    /// nginx on port 80.
    Nginx,
    /// A JDK and Apache Ant.
    Java,
    /// Debian's Go tool chain.
    Golang,
    /// Python with PyPI's packages for data, above 1.5 GB.
    Science,
    /// The same, padded to about 4 GB.
    SciencePadded,
    /// A shell and its tools in 2 MB.
    Busybox,
    /// busybox in 127 layers.
    ManyLayers,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let target = Target::new(&arguments.registry);
    let (name, build): (&str, fn() -> Result<Image>) = match arguments.image {
        Name::Quickstart => ("python:numpy", debian::python),
        Name::Bench => ("python:large", debian::python_large),
        Name::Nginx => ("nginx:latest", debian::nginx),
        Name::Java => ("java:ant", real::java),
        Name::Golang => ("golang:latest", real::golang),
        Name::Science => ("science:latest", real::science),
        Name::SciencePadded => ("science:padded", real::science_padded),
        Name::Busybox => ("busybox:latest", busybox::image),
        Name::ManyLayers => ("busybox:many-layers", variants::many_layers),
    };
    let image = build().with_context(|| format!("make the image {name}"))?;
    println!("{}", target.push(&image, name)?);
    Ok(())
}
