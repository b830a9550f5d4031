//! The gRPC health check (`grpc.health.v1.Health/Check`): two messages so small that they are read and written by hand.
//!
//! Request: field 1, the service's name. Response: field 1, an enum whose 1 is `SERVING`. Both in gRPC's frames of one
//! flag byte and four of length (github.com/grpc/grpc, `doc/health-checking.md` and `doc/PROTOCOL-HTTP2.md`).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::http::AGENT;
use super::{Answer, authority, unreachable};
use crate::limits::ANSWER_BYTES_MAX;

const SERVING: u64 = 1;

/// Asks once; good is `SERVING`.
pub(super) async fn probe(host: &str, port: u16, service: &str) -> Answer {
    match check(host, port, service).await {
        Ok(Some(SERVING)) => Answer::Good,
        Ok(status) => {
            let name = match status {
                Some(0) | None => "UNKNOWN",
                Some(2) => "NOT_SERVING",
                Some(3) => "SERVICE_UNKNOWN",
                Some(_) => "a status that nobody knows",
            };
            Answer::Bad(format!("service unhealthy (responded with {name:?})"))
        }
        Err(why) => Answer::Bad(why),
    }
}

async fn check(host: &str, port: u16, service: &str) -> Result<Option<u64>, String> {
    let stream = TcpStream::connect((host, port)).await.map_err(|error| unreachable(host, port, &error))?;
    let text = |error: hyper::Error| sampan_kit::error_chain::ErrorChain(&error).to_string();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = request(&authority(host, port), service)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        let (head, body) = response.into_parts();
        failure(&head.headers)?;
        if head.status != http::StatusCode::OK {
            return Err(format!("it answers {} to a gRPC health check", head.status));
        }
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        body.trailers().map_or(Ok(()), failure)?;
        parse(&body.to_bytes()).ok_or_else(|| "its answer is no health check's".to_owned())
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    let mut is_open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _closed = &mut connection, if is_open => is_open = false,
        }
    }
}

fn request(authority: &str, service: &str) -> Result<Request<Full<Bytes>>, String> {
    let uri = format!("http://{authority}/grpc.health.v1.Health/Check");
    let mut request = Request::new(Full::new(frame(service)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.parse().map_err(|error| format!("{authority}: {error}"))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(request)
}

fn frame(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// What `grpc-status` tells, unless it is 0.
fn failure(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some("12") => Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()),
        Some("5") => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
        Some(code) => {
            let message: String = text("grpc-message").unwrap_or_default().chars().take(200).collect();
            Err(format!("health rpc failed: status {code} {message}"))
        }
    }
}

/// The status in a framed response; the outer None is a damaged one, the inner a message that leaves it out.
pub(super) fn parse(bytes: &[u8]) -> Option<Option<u64>> {
    let (head, mut message) = bytes.split_first_chunk::<5>()?;
    let [flag, length @ ..] = head;
    if *flag != 0 || usize::try_from(u32::from_be_bytes(*length)).ok()? != message.len() {
        return None;
    }
    let mut status = None;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = Some(varint(&mut message)?),
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => message = message.get(8..)?,
            (_, 5) => message = message.get(4..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn messages_are_as_the_protocol_has_them() {
        assert_eq!(super::frame("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(super::frame("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(super::frame(&"x".repeat(300)).get(5..8), Some(&[0x0a, 0xac, 0x02][..]));
        assert_eq!(super::parse(&[0, 0, 0, 0, 2, 8, 1]), Some(Some(1)));
        assert_eq!(super::parse(&[0, 0, 0, 0, 0]), Some(None));
        assert_eq!(super::parse(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 2]), Some(Some(2)));
        for damaged in
            [&[][..], &[0, 0, 0, 0, 3, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8], &[0, 0, 0, 0, 2, 0x12, 9]]
        {
            assert_eq!(super::parse(damaged), None, "{damaged:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            super::parse(&bytes);
            let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
            bytes.splice(0..0, [0].into_iter().chain(length));
            super::parse(&bytes);
        }
    }
}
