//! Addresses of streams that wait for their clients: each works once, and not for long.
//!
//! The streaming server has no other access control, so that a ticket's name has 128 random bits.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::error::CallError;
use crate::limits::{TOKEN_LIFE, TOKENS_MAX};
use crate::proto::v1::{AttachRequest, ExecRequest, PortForwardRequest};

/// What a client may do when it comes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ticket {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// The tickets that nobody has used yet.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<String, (Instant, Ticket)>>);

impl Tickets {
    /// Keeps a ticket and names it.
    pub(crate) fn issue(&self, ticket: Ticket, now: Instant) -> Result<String, CallError> {
        let part = || sampan_kit::id::short().map_err(CallError::host("drawing a random name"));
        let name = part()? + &part()?;
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|_, (issued, _)| now.saturating_duration_since(*issued) < TOKEN_LIFE);
        if tickets.len() >= TOKENS_MAX {
            return Err(CallError::Exhausted("too many streams wait for their clients, try again later".to_owned()));
        }
        tickets.insert(name.clone(), (now, ticket));
        Ok(name)
    }

    /// Gives a ticket away for good.
    pub(crate) fn take(&self, name: &str, now: Instant) -> Option<Ticket> {
        let (issued, ticket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        (now.saturating_duration_since(issued) < TOKEN_LIFE).then_some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_ticket_works_once_and_not_for_long() {
        let tickets = Tickets::default();
        let now = Instant::now();
        let ticket = Ticket::Exec(ExecRequest { container_id: "c".to_owned(), ..Default::default() });
        let name = tickets.issue(ticket.clone(), now).unwrap();
        assert_eq!(name.len(), 32);
        assert_eq!(tickets.take(&name, now), Some(ticket.clone()));
        assert_eq!(tickets.take(&name, now), None);
        let late = tickets.issue(ticket, now).unwrap();
        assert_eq!(tickets.take(&late, now + TOKEN_LIFE), None);
    }

    #[test]
    fn unused_tickets_are_bounded_and_make_room_when_they_are_old() {
        let tickets = Tickets::default();
        let now = Instant::now();
        let ticket = || Ticket::PortForward(PortForwardRequest::default());
        for _ in 0..TOKENS_MAX {
            tickets.issue(ticket(), now).unwrap();
        }
        assert!(matches!(tickets.issue(ticket(), now), Err(CallError::Exhausted(_))));
        tickets.issue(ticket(), now + TOKEN_LIFE + Duration::from_secs(1)).unwrap();
    }
}
