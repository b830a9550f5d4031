//! `sampan cp`: files out of and into a running instance, by docker's rules.
//!
//! ```text
//!   NAME:/path ──tar stream of the node──▶ unpack ──▶ local path, or stdout as it is
//!   local path ──pack──▶ tar stream ──▶ NAME:/directory, or stdin as it is
//! ```
//!
//! The rules (docker's `container cp`): a file goes to the name that is given, or into it when it is a directory; a
//! directory becomes the name that is given when there is none, and goes into it when there is one; `dir/.` means what
//! is in it. Invariant: what an instance sends is hostile; see [`unpack`].

mod pack;
mod place;
mod unpack;

use std::io::IsTerminal as _;
use std::path::Path;

use bytes::Bytes;
use clap::Args;
use futures_util::TryStreamExt as _;
use http::{Method, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use sampan_oci::layer::{Entry, EntryKind, LayerReader, LayerSink, ReadError};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::{Context, node};
use crate::client::channels::deliver;
use crate::client::{Body, ClientError, head, path};
use crate::failure::Failure;
use crate::output::note;
use crate::pods::{main_container, text};
use place::{Remote, Side};
use unpack::{Unpacking, Wanted};

const TAR: &str = "application/x-tar";

const EXAMPLES: &str = "\
Examples:
  sampan cp web:/etc/nginx/nginx.conf .       a file into this directory
  sampan cp ./site web:/usr/share/nginx/html  a directory into a directory
  sampan cp ./site/. web:/srv                 only what is in it
  sampan cp web:/var/log - | tar t            as a tar stream
  sampan cp - web:/srv < site.tar             from a tar stream

Set-uid and set-gid bits, devices and pipes of an instance are left out; owners become this user.";

// From where to where.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CpArgs {
    /// The container, where there are several.
    #[arg(short, long, value_name = "CONTAINER")]
    container: Option<String>,
    /// NAME:PATH in an instance, a local path, or - for standard input.
    from: String,
    /// NAME:PATH in an instance, a local path, or - for standard output.
    to: String,
}

/// Runs `sampan cp`.
pub(crate) async fn execute(args: &CpArgs, context: &Context) -> Result<i32, Failure> {
    match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::Remote(from), Side::Local(to)) => {
            let instance = Instance::find(context, args, &from.instance).await?;
            instance.fetch(&from, to.as_ref()).await?;
        }
        (Side::Remote(from), Side::Stream) => {
            if std::io::stdout().is_terminal() {
                return Err(Failure::explain(
                    "cp",
                    "a tar stream is nothing for a terminal",
                    "send it to a file or a pipe",
                ));
            }
            Instance::find(context, args, &from.instance).await?.fetch_stdout(&from).await?;
        }
        (Side::Local(from), Side::Remote(to)) => {
            let instance = Instance::find(context, args, &to.instance).await?;
            instance.send_local(from.as_ref(), &to).await?;
        }
        (Side::Stream, Side::Remote(to)) => {
            Instance::find(context, args, &to.instance).await?.send_stdin(&to).await?;
        }
        (Side::Remote(_), Side::Remote(_)) => {
            return Err(Failure::explain("cp", "both sides are instances", "copy to this machine first, then on"));
        }
        (Side::Local(_) | Side::Stream, Side::Local(_) | Side::Stream) => {
            return Err(Failure::explain("cp", "neither side is an instance", "write one of them as NAME:/path"));
        }
    }
    Ok(0)
}

/// Where the node serves copies of one container.
struct Instance<'context> {
    context: &'context Context,
    name: String,
    endpoint: String,
}

/// What a path in an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Directory,
    Symlink,
    Other,
}

impl<'context> Instance<'context> {
    async fn find(context: &'context Context, args: &CpArgs, name: &str) -> Result<Self, Failure> {
        let pod: Value = context.pod(name).await?;
        let container = args.container.as_deref().unwrap_or_else(|| main_container(&pod));
        let parts = [text(&pod, "/metadata/namespace"), name, container].map(path::encode).join("/");
        Ok(Self { context, name: name.to_owned(), endpoint: path::node(node::of(&pod)?, &format!("cp/{parts}")) })
    }

    async fn open(&self, remote: &str) -> Result<Incoming, ClientError> {
        let address = format!("{}{}", self.endpoint, path::query([("path", remote.to_owned())]));
        self.context.client.stream(Method::GET, &address, None).await
    }

    fn about(&self, remote: &str, error: ClientError) -> Failure {
        let thing = format!("{}:{remote}", self.name);
        if error.is_not_found() {
            return Failure::explain(thing, "there is no such file or directory", "look with: sampan exec NAME ls");
        }
        error.about(&thing)
    }

    /// An instance's path to a local one.
    async fn fetch(&self, from: &Remote, to: &Path) -> Result<(), Failure> {
        let wanted = Wanted::at(to, from)?;
        let mut body = self.open(&from.path()).await.map_err(|error| self.about(&from.path(), error))?;
        let mut reader = LayerReader::new();
        let mut unpacking = Unpacking::new(wanted);
        let hostile = |reason: String| Failure::new(format_args!("{}:{}: {reason}", self.name, from.path()));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.about(&from.path(), ClientError::lost(error)))?;
            let bytes = frame.into_data().unwrap_or_default();
            reader.feed(&bytes, &mut unpacking).map_err(|error| match error {
                ReadError::Layer(error) => hostile(error.to_string()),
                ReadError::Sink(failure) => failure,
            })?;
        }
        reader.finish().map_err(|error| hostile(error.to_string()))?;
        if let Some(line) = unpacking.finish()? {
            note(&line);
        }
        Ok(())
    }

    async fn fetch_stdout(&self, from: &Remote) -> Result<(), Failure> {
        let mut body = self.open(&from.path()).await.map_err(|error| self.about(&from.path(), error))?;
        let mut stdout = tokio::io::stdout();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.about(&from.path(), ClientError::lost(error)))?;
            deliver(&mut stdout, &frame.into_data().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// A local path to an instance's.
    async fn send_local(&self, from: &Path, to: &Remote) -> Result<(), Failure> {
        let source = pack::Source::open(from)?;
        let (directory, name) = self.destination(&source, to).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(8);
        let packing = tokio::task::spawn_blocking(move || source.pack(name.as_deref(), &sender));
        let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|piece| (Ok(Frame::data(piece)), receiver))
        });
        let put = self.put(&directory, StreamBody::new(Box::pin(pieces)).boxed_unsync()).await;
        // The source's own trouble explains a refusal better than the refusal does.
        let packed = packing.await.map_err(|error| Failure::explain("cp", error, "report this"))?;
        if let Some(line) = packed? {
            note(&line);
        }
        put
    }

    /// In which directory of the instance a local source comes to lie, and under which name; `None`: only what is in it.
    async fn destination(&self, source: &pack::Source, to: &Remote) -> Result<(String, Option<Vec<u8>>), Failure> {
        let remote = to.path();
        let failure =
            |reason: &str, way_out: &str| Failure::explain(format_args!("{}:{remote}", self.name), reason, way_out);
        match self.look(&remote).await? {
            Some(Found::Directory) => Ok((remote, source.name_below())),
            Some(_) if source.is_directory() => {
                Err(failure("it is a file, and a directory cannot take its place", "name a directory"))
            }
            Some(_) | None if to.is_root() => Err(failure("the root directory is not there", "look at the instance")),
            None if to.wants_directory && !source.is_directory() => {
                Err(failure("there is no such directory", "create it with: sampan exec NAME mkdir -p"))
            }
            Some(_) | None => Ok((to.parent(), Some(to.base().into_bytes()))),
        }
    }

    /// What is at a path; links are followed once, as far as it takes to know whether a directory is meant.
    async fn look(&self, remote: &str) -> Result<Option<Found>, Failure> {
        match self.first_entry(remote).await? {
            Some(Found::Symlink) => {
                let through = self.first_entry(&format!("{remote}/.")).await?;
                Ok(Some(if through == Some(Found::Directory) { Found::Directory } else { Found::Other }))
            }
            found => Ok(found),
        }
    }

    async fn first_entry(&self, remote: &str) -> Result<Option<Found>, Failure> {
        let mut body = match self.open(remote).await {
            Ok(body) => body,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(self.about(remote, error)),
        };
        let mut reader = LayerReader::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.about(remote, ClientError::lost(error)))?;
            match reader.feed(&frame.into_data().unwrap_or_default(), &mut First) {
                Ok(()) => {}
                Err(ReadError::Sink(found)) => return Ok(Some(found)),
                Err(ReadError::Layer(error)) => {
                    return Err(Failure::new(format_args!("{}:{remote}: {error}", self.name)));
                }
            }
        }
        Ok(None)
    }

    async fn send_stdin(&self, to: &Remote) -> Result<(), Failure> {
        let pieces = ReaderStream::new(tokio::io::stdin()).map_ok(Frame::data);
        self.put(&to.path(), StreamBody::new(pieces).boxed_unsync()).await
    }

    async fn put(&self, directory: &str, body: Body) -> Result<(), Failure> {
        let address = format!("{}{}", self.endpoint, path::query([("path", directory.to_owned())]));
        let request = head(Method::PUT, &address).header(header::CONTENT_TYPE, TAR).body(body);
        let request = request.map_err(|error| Failure::explain("cp", error, "report this"))?;
        let answer = self.context.client.send(request).await;
        let answer = answer.map_err(|error| self.about(directory, error))?;
        answer.into_body().collect().await.map_err(|error| self.about(directory, ClientError::lost(error))).map(drop)
    }
}

/// Takes the first entry of an archive and no more.
struct First;

impl LayerSink for First {
    type Error = Found;

    fn entry(&mut self, entry: Entry) -> Result<(), Found> {
        Err(match entry.kind {
            EntryKind::Directory => Found::Directory,
            EntryKind::Symlink { .. } => Found::Symlink,
            _ => Found::Other,
        })
    }

    fn data(&mut self, _bytes: &[u8]) -> Result<(), Found> {
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Found> {
        Ok(())
    }
}
