//! The framed protocol between daemon, zygote and agent.
//!
//! Pure: bytes in, messages out. A frame is a header, a [postcard](https://postcard.jamesmunns.com/wire-format) payload
//! and a number of descriptors that travel beside the bytes. Descriptors are named inside a message by a [`Slot`], so
//! that the same messages can cross a transport without descriptors when a microVM needs it.
//!
//! Neither end trusts the other's bytes: every length is checked against `limits` before anything is allocated, and
//! nothing here panics on any input.

pub mod agent;
pub mod frame;
pub mod limits;
pub mod zygote;

/// The version that both ends must speak; agents outlive daemons, so a change of any message raises it.
pub const PROTOCOL_VERSION: u16 = 2;

/// The place of a descriptor in the list that came with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slot(pub u16);
