//! The two services, call by call. What a call does stands in [`crate::engine`] and [`crate::images`]; here are its
//! messages.

mod images;
mod runtime;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::Status;

use crate::engine::Engine;
use crate::limits::STREAMED_ITEMS;

/// The name of the one runtime handler beside the default, which is the same.
pub(crate) const HANDLER: &str = "sampan";

/// Whether a pod may ask for this runtime handler.
pub(crate) fn is_handler(name: &str) -> bool {
    name.is_empty() || name == HANDLER
}

/// Serves both services.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    /// How the kubelet is to name control groups.
    pub(crate) driver: crate::proto::v1::CgroupDriver,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list in several messages; at least one, so that an empty list is heard of.
fn in_pieces<I: Send + 'static, M: Send + 'static>(
    items: Vec<I>,
    message: impl Fn(Vec<I>) -> M + Send + 'static,
) -> Messages<M> {
    let mut items = items.into_iter();
    let mut pieces = Vec::new();
    loop {
        let piece: Vec<I> = items.by_ref().take(STREAMED_ITEMS).collect();
        if piece.is_empty() && !pieces.is_empty() {
            break;
        }
        let is_last = piece.len() < STREAMED_ITEMS;
        pieces.push(Ok(message(piece)));
        if is_last {
            break;
        }
    }
    Box::pin(futures_util::stream::iter(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn lists_come_whole_in_pieces() {
        for count in [0, 1, STREAMED_ITEMS, STREAMED_ITEMS + 1, 3 * STREAMED_ITEMS] {
            let pieces: Vec<_> = in_pieces((0..count).collect(), |piece| piece).collect().await;
            assert!(!pieces.is_empty());
            let all: Vec<usize> = pieces.into_iter().flat_map(Result::unwrap).collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }
}
