//! Requests against servers on the loopback: what counts as an answer, and what is said when there is none.

use k8s_openapi::api::core::v1::{Container, ContainerPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::http::{HttpCall, probe};
use super::{Answer, connect, port_number, quoted};

/// A server that gives each connection one answer; returns its port.
async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            requests.push(String::from_utf8(request).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    (port, task)
}

fn call(port: u16, path: &str) -> HttpCall {
    HttpCall { host: "127.0.0.1".into(), port, tls: false, path: path.into(), headers: Vec::new() }
}

#[tokio::test]
async fn an_answer_is_good_from_200_to_399() {
    for (answer, good) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", false),
        ("garbage\r\n\r\n", false),
    ] {
        let (port, task) = server(vec![answer]).await;
        let answer = probe(&call(port, "/healthz?x=1")).await.unwrap();
        assert_eq!(answer == Answer::Good, good, "{answer:?}");
        assert!(task.await.unwrap()[0].starts_with("GET /healthz?x=1 HTTP/1.1\r\n"));
    }
}

#[tokio::test]
async fn headers_are_the_probes_own_and_redirects_on_the_same_host_are_followed() {
    let moved = "HTTP/1.1 301 Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n";
    let (port, task) = server(vec![moved, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"]).await;
    let headers = [("Host", "example.org"), ("X-A", "1"), ("x-a", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    let answer = probe(&HttpCall { headers: headers.to_vec(), ..call(port, "/") }).await.unwrap();
    assert_eq!(answer, Answer::Bad("HTTP probe failed with statuscode: 500".into()));
    let requests = task.await.unwrap();
    let first = requests[0].to_ascii_lowercase();
    for line in ["host: example.org\r\n", "x-a: 1\r\n", "x-a: 2\r\n", "user-agent: kube-probe/1.34\r\n"] {
        assert!(first.contains(line), "{first}");
    }
    assert_eq!(first.matches("host:").count(), 1);
    assert!(requests[1].starts_with("GET /there "));
}

#[tokio::test]
async fn nobody_there_is_said_as_everybody_says_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(connect("127.0.0.1", port).await, Answer::Good);
    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(connect("127.0.0.1", port).await, Answer::Bad(refused.clone()));
    let Ok(Answer::Bad(why)) = probe(&call(port, "/")).await else { panic!("it answers") };
    assert!(why.ends_with(&refused), "{why}");
}

#[test]
fn ports_have_numbers_and_names() {
    let web = ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() };
    let container = Container { ports: Some(vec![web]), ..Container::default() };
    let named = |name: &str| port_number(&container, &IntOrString::String(name.into()));
    assert_eq!(named("web"), Ok(8080));
    assert_eq!(named("81"), Ok(81));
    assert!(named("other").is_err());
    assert_eq!(port_number(&container, &IntOrString::Int(80)), Ok(80));
    assert!(port_number(&container, &IntOrString::Int(70_000)).is_err());
}

#[test]
fn what_is_quoted_is_one_bounded_line() {
    assert_eq!(quoted(b" a\nb\x1b[1m\xff "), "a b [1m\u{fffd}");
    assert!(quoted(&[b'x'; 100_000]).len() < 1000);
}
