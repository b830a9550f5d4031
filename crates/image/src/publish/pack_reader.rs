//! A published start pack, read while the image is already in use.
//!
//! Its head is here before it is handed out; the frames follow in order, the next one asked for while the last is put in place.
//! Each is checked against the head, which the signature covers.

use super::describe::{Description, Subject};
use super::place::Place;
use super::tally::Tally;
use crate::lazy::source::{PackReader, PackedPages, PageNumber, SourceError};
use crate::limits::{PACK_FRAMES_AHEAD, PACK_HEAD_BYTES_MAX};
use crate::pack::{HEADER_BYTES, PackHead, head_range};
use async_trait::async_trait;
use bytes::Bytes;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinHandle;

pub(super) struct SignedPack {
    head: Arc<PackHead>,
    /// The pages of each frame, and all of them.
    frames: VecDeque<Vec<PageNumber>>,
    pages: Vec<PageNumber>,
    place: Place,
    tally: Arc<Tally>,
    /// The next frame to hand out, the next one to ask for, and where that one begins in the file.
    next: usize,
    unasked: usize,
    offset: u64,
    coming: VecDeque<JoinHandle<Result<Bytes, SourceError>>>,
}

impl SignedPack {
    /// Fetches the head and holds it to the signature and to the image's layers.
    pub(super) async fn open(
        description: &Description,
        place: Place,
        diff_ids: &[Digest],
        tally: Arc<Tally>,
    ) -> Result<Self, SourceError> {
        let damaged = |what: &str| SourceError::Damaged(what.to_owned());
        if description.head.bytes > PACK_HEAD_BYTES_MAX + HEADER_BYTES as u64 {
            return Err(damaged("the head of the start pack is larger than the limit"));
        }
        let bytes = place.read_all(0..description.head.bytes).await?;
        Tally::add(&tally.packs, &bytes);
        if !description.head.matches(&bytes) {
            return Err(damaged("it is not what was signed"));
        }
        let decode = || Ok::<_, crate::pack::PackError>((head_range(&bytes)?.end, PackHead::decode(&bytes)?));
        let (end, head) = decode().map_err(|error| SourceError::Damaged(ErrorChain(&error).to_string()))?;
        let is_ours = matches!(description.subject, Subject::Pack { manifest } if manifest == head.manifest);
        if !is_ours || head.layers != diff_ids {
            return Err(damaged("the start pack is another image's"));
        }
        if end != description.head.bytes || end.checked_add(head.frames_bytes()) != Some(description.size) {
            return Err(damaged("the start pack has another size than its head says"));
        }
        let frames: VecDeque<Vec<PageNumber>> = head.frame_pages().collect();
        let pages = frames.iter().flatten().copied().collect();
        let head = Arc::new(head);
        Ok(Self { head, frames, pages, place, tally, next: 0, unasked: 0, offset: end, coming: VecDeque::new() })
    }

    fn ask_ahead(&mut self) {
        while self.coming.len() <= PACK_FRAMES_AHEAD {
            let Some(bytes) = self.head.frame_bytes(self.unasked) else { return };
            let range = self.offset..self.offset.saturating_add(bytes as u64);
            (self.unasked, self.offset) = (self.unasked + 1, range.end);
            let place = self.place.clone();
            self.coming.push_back(tokio::spawn(async move { place.read_all(range).await }));
        }
    }
}

impl Drop for SignedPack {
    fn drop(&mut self) {
        self.coming.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl PackReader for SignedPack {
    fn pages(&self) -> &[PageNumber] {
        &self.pages
    }

    async fn next(&mut self) -> Result<Option<PackedPages>, SourceError> {
        self.ask_ahead();
        let Some(coming) = self.coming.front_mut() else { return Ok(None) };
        let stopped = || SourceError::Damaged("reading the start pack broke off".to_owned());
        let stored = coming.await.map_err(|_stopped| stopped())?;
        self.coming.pop_front();
        let (head, frame, stored) = (Arc::clone(&self.head), self.next, stored?);
        Tally::add(&self.tally.packs, &stored);
        let unpacked = tokio::task::spawn_blocking(move || head.decode_frame(frame, &stored)).await;
        let unpacked = unpacked.map_err(|_stopped| stopped())?;
        let bytes = unpacked.map_err(|error| SourceError::Damaged(ErrorChain(&error).to_string()))?;
        self.next += 1;
        let pages = self.frames.pop_front().ok_or_else(stopped)?;
        Ok(Some(PackedPages { pages, bytes: bytes.into() }))
    }
}
