//! Inflates one gzip file with our decoder and with its peers, and prints how fast each is.
//!
//! `cargo run --release -p sampan-oci --example inflate_compare -- FILE.gz [ROUNDS]`
//!
//! Every decoder gets the whole compressed file in memory. The streaming ones put out 1 MiB at a time; libdeflate, which
//! cannot stream, gets one buffer for everything. `igzip` (ISA-L) runs as a program, process start included, when it is
//! on the PATH. Each figure is the best of the rounds, which are interleaved.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use sampan_oci::gzip::{DecoderState, GzipDecoder};
use sampan_oci::inflate::{CheckpointPolicy, OutputBuffer};

const CHUNK_BYTES: usize = 1 << 20;

type Decoder = (&'static str, fn(&[u8], &str) -> Result<u64>);

const DECODERS: [Decoder; 6] = [
    ("sampan", |gz, _| ours(gz, None)),
    ("sampan, spans and windows noted", |gz, _| ours(gz, Some(CheckpointPolicy::default()))),
    ("sampan, fed 64 KiB at a time", |gz, _| ours_in_slices(gz, 64 << 10)),
    ("zlib-rs", |gz, _| zlib_rs(gz)),
    ("libdeflate (whole buffer)", |gz, _| libdeflate(gz)),
    ("ISA-L (igzip program)", |_, path| igzip(path)),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("which gzip file?")?;
    let rounds: usize = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    let gz = std::fs::read(&path).with_context(|| format!("read {path}"))?;

    let mut best = [f64::INFINITY; DECODERS.len()];
    let mut bytes = 0;
    for _ in 0..rounds {
        for ((name, decode), best) in DECODERS.iter().zip(&mut best) {
            let begin = Instant::now();
            match decode(&gz, &path) {
                Ok(0) => {}
                Ok(n) => {
                    bytes = n;
                    *best = best.min(begin.elapsed().as_secs_f64());
                }
                Err(error) => println!("{name}: {error:#}"),
            }
        }
    }
    println!("{} bytes of gzip, {bytes} bytes inflated, best of {rounds}", gz.len());
    for ((name, _), seconds) in DECODERS.iter().zip(best) {
        println!("{name:32} {seconds:7.3} s {:7.0} MB/s", bytes as f64 / seconds / 1e6);
    }
    Ok(())
}

fn ours(gz: &[u8], policy: Option<CheckpointPolicy>) -> Result<u64> {
    let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(CHUNK_BYTES), policy);
    drive(&mut decoder, gz)?;
    Ok(decoder.finish()?.uncompressed)
}

fn ours_in_slices(gz: &[u8], slice: usize) -> Result<u64> {
    let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(CHUNK_BYTES), None);
    for slice in gz.chunks(slice) {
        drive(&mut decoder, slice)?;
    }
    Ok(decoder.finish()?.uncompressed)
}

fn drive(decoder: &mut GzipDecoder, mut input: &[u8]) -> Result<()> {
    loop {
        let progress = decoder.feed(input)?;
        input = &input[progress.consumed..];
        match progress.state {
            DecoderState::NeedsInput => return Ok(()),
            DecoderState::OutputFull => {
                std::hint::black_box(decoder.output());
                decoder.clear_output();
                std::hint::black_box(decoder.take_spans());
            }
        }
    }
}

fn zlib_rs(gz: &[u8]) -> Result<u64> {
    let mut decoder = flate2::bufread::MultiGzDecoder::new(gz);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match decoder.read(&mut chunk)? {
            0 => return Ok(bytes),
            n => bytes += std::hint::black_box(&chunk[..n]).len() as u64,
        }
    }
}

fn libdeflate(gz: &[u8]) -> Result<u64> {
    // The size that gzip notes; one member of less than 4 GiB is all that this needs to handle.
    let size = gz.last_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size));
    let mut output = vec![0; size as usize];
    let bytes = libdeflater::Decompressor::new().gzip_decompress(gz, &mut output)?;
    Ok(std::hint::black_box(&output[..bytes]).len() as u64)
}

fn igzip(path: &str) -> Result<u64> {
    let begun = Command::new("igzip").args(["-d", "-c", path]).stdout(Stdio::null()).status();
    // It does not tell the size; a zero is not counted as one.
    let Ok(status) = begun else { return Ok(0) };
    anyhow::ensure!(status.success(), "igzip fails");
    let file = std::fs::read(path)?;
    Ok(file.last_chunk::<4>().map_or(0, |size| u64::from(u32::from_le_bytes(*size))))
}
