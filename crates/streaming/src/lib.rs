//! Remote command streams for exec and attach: WebSocket and SPDY
