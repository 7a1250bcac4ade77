//! `http-request`.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ostler_worker::protocol::ErrorKind;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::driver::{Driver, Ended, builtin};

/// A server that says what it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    Some(config) => serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
                    None => serve(stream),
                });
            }
        });
        Self { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// One request, answered by its path.
fn serve(stream: impl Read + Write) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        if let Some(said) = line.to_lowercase().strip_prefix("content-length:") {
            length = said.trim().parse().unwrap();
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let path = head[0].split(' ').nth(1)?.to_owned();
    let answer = |head: &str, body: &str| {
        format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    let answer = match path.split_once('?').unwrap_or((&path, "")) {
        ("/to", there) => answer(&format!("302 Found\r\nlocation: {there}"), ""),
        ("/keep", there) => answer(&format!("307 Kept\r\nlocation: {there}"), ""),
        ("/loop", _) => answer("301 Moved\r\nlocation: loop", ""),
        ("/large", _) => answer("200 OK", &"x".repeat(100_000)),
        ("/endless", _) => {
            let _ = write!(stream.get_mut(), "HTTP/1.1 200 OK\r\n\r\n");
            while stream.get_mut().write_all(&[b'x'; 8192]).is_ok() {}
            return None;
        }
        ("/silent", _) => {
            let _ = stream.read(&mut [0]);
            return None;
        }
        ("/short", _) => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_owned(),
        ("/rubbish", _) => "rubbish\r\n\r\n".to_owned(),
        ("/missing", _) => answer("404 Not Found\r\nx-a: 1\r\nX-A: 2", "no"),
        _ => answer("200 OK", &json!({"head": head, "body": String::from_utf8_lossy(&body)}).to_string()),
    };
    stream.get_mut().write_all(answer.as_bytes()).ok()?;
    stream.get_mut().flush().ok()
}

fn ask(driver: &mut Driver, payload: &Value) -> Ended {
    driver.task("http-request", payload, &json!({"allow": {"network": true, "private": true}}))
}

fn echoed(ended: &Ended) -> Value {
    serde_json::from_str(ended.value()["body"].as_str().unwrap()).unwrap()
}

#[test]
fn a_request_is_sent_as_it_is_asked_for() {
    let (mut driver, server) = (Driver::builtin(), Server::start(None));
    let ended = ask(
        &mut driver,
        &json!({"url": server.url("/a/../b?c=d#e"), "method": "PUT", "json": {"n": 1.50}, "headers": {"X-Mine": "m"}}),
    );
    let value = ended.value();
    assert_eq!((&value["status"], &value["redirects"]), (&json!(200), &json!(0)));
    let echo = echoed(&ended);
    let head: Vec<&str> = echo["head"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(head[0], "PUT /b?c=d HTTP/1.1");
    for part in [&format!("host: {}", server.address), "content-type: application/json", "x-mine: m"] {
        assert!(head.contains(&part), "{part}: {head:?}");
    }
    assert_eq!(echo["body"], "{\"n\":1.5}");
    let missing = ask(&mut driver, &json!({"url": server.url("/missing")})).value();
    assert_eq!(
        (&missing["status"], &missing["headers"]["x-a"], &missing["body"]),
        (&json!(404), &json!(["1", "2"]), &json!("no"))
    );
}

#[test]
fn redirects_are_followed_counted_and_give_no_secret_away() {
    let (mut driver, server, other) = (Driver::builtin(), Server::start(None), Server::start(None));
    let secret = json!({"authorization": "s", "cookie": "c", "x-kept": "k"});
    let far = server.url(&format!("/to?{}", other.url("/end")));
    let ended = ask(&mut driver, &json!({"url": far, "method": "POST", "body": "b", "headers": secret}));
    let value = ended.value();
    assert_eq!((&value["redirects"], &value["url"]), (&json!(1), &json!(other.url("/end"))));
    let head = echoed(&ended)["head"].to_string();
    assert!(head.contains("GET /end") && head.contains("x-kept"), "{head}");
    assert!(!head.contains("authorization") && !head.contains("cookie"), "{head}");
    let near = server.url("/keep?end");
    let ended = ask(&mut driver, &json!({"url": near, "method": "POST", "body": "b", "headers": secret}));
    let echo = echoed(&ended);
    assert!(
        echo["head"].to_string().contains("POST /end") && echo["head"].to_string().contains("authorization")
    );
    assert_eq!(echo["body"], "b");
    let before = server.asked.load(Ordering::SeqCst);
    let ended = ask(&mut driver, &json!({"url": server.url("/loop"), "redirects": 3}));
    ended.is(ErrorKind::Failed, "sent on 3 times");
    assert!(!ended.error().retry);
    assert_eq!(server.asked.load(Ordering::SeqCst) - before, 4);
    let ended = ask(&mut driver, &json!({"url": server.url("/to?/end"), "redirects": 0})).value();
    assert_eq!((&ended["status"], &ended["headers"]["location"]), (&json!(302), &json!(["/end"])));
    ask(&mut driver, &json!({"url": server.url("/to?file:///etc/passwd")})).is(ErrorKind::Refused, "http");
}

#[test]
fn the_network_and_what_is_inside_it_have_to_be_allowed() {
    let (mut driver, server) = (Driver::builtin(), Server::start(None));
    let port = server.address.port();
    driver.run("http-request", &json!({"url": server.url("/")})).is(ErrorKind::Refused, "network");
    for host in [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "2130706433",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
    ] {
        let asked = json!({"url": format!("http://{host}:{port}/")});
        let ended = driver.task("http-request", &asked, &json!({"allow": {"network": true}}));
        ended.is(ErrorKind::Refused, "private addresses");
        assert!(!ended.error().retry);
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[test]
fn what_goes_wrong_has_its_kind() {
    let (mut driver, server) = (Driver::builtin(), Server::start(None));
    let large = |payload: Value, driver: &mut Driver| ask(driver, &payload).is(ErrorKind::Output, "max_body");
    large(json!({"url": server.url("/large"), "max_body": 99_999}), &mut driver);
    large(json!({"url": server.url("/endless"), "max_body": 50_000}), &mut driver);
    assert!(ask(&mut driver, &json!({"url": server.url("/large"), "max_body": 100_000})).0.ok);
    for (path, part) in [("/short", "broke off"), ("/rubbish", "rubbish")] {
        let ended = ask(&mut driver, &json!({"url": server.url(path)}));
        ended.is(ErrorKind::Failed, part);
        assert!(ended.error().retry);
    }
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    ask(&mut driver, &json!({"url": format!("http://{nobody}/")})).is(ErrorKind::Failed, "refused");
    ask(&mut driver, &json!({"url": server.url("/silent"), "timeout_ms": 50}))
        .is(ErrorKind::Timeout, "timeout_ms");
    let limited = json!({"allow": {"network": true, "private": true}, "limits": {"time_ms": 50}});
    driver
        .task("http-request", &json!({"url": server.url("/silent")}), &limited)
        .is(ErrorKind::Timeout, "50 ms");
    let asked = server.asked.load(Ordering::SeqCst);
    driver.begin(
        "http-request",
        &json!({"url": server.url("/silent")}),
        &json!({"allow": {"network": true, "private": true}}),
    );
    crate::driver::wait_until("it is asked", || server.asked.load(Ordering::SeqCst) > asked);
    driver.cancel();
    driver.ended().is(ErrorKind::Cancelled, "");
    for (payload, part) in [
        (json!({"url": "ftp://a/"}), "http"),
        (json!({"url": "no url"}), "url"),
        (json!({"url": "http://u:p@a/"}), "authorization"),
        (json!({"url": "http://a/", "method": "a b"}), "method"),
        (json!({"url": "http://a/", "method": "CONNECT"}), "CONNECT"),
        (json!({"url": "http://a/", "headers": {"host": "b"}}), "host"),
        (json!({"url": "http://a/", "headers": {"a b": "b"}}), "header"),
        (json!({"url": "http://a/", "headers": {"a": "b\r\nc: d"}}), "header"),
        (json!({"url": "http://a/", "body": "", "json": 1}), "only one"),
        (json!({"url": "http://a/", "body_base64": "?"}), "base64"),
        (json!({"url": "http://a/", "redirects": 21}), "redirects"),
        (json!({"url": "http://a/", "ulr": ""}), "ulr"),
    ] {
        ask(&mut driver, &payload).is(ErrorKind::Invalid, part);
    }
}

#[test]
fn https_trusts_the_systems_authorities_only() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let server = Server::start(Some(Arc::new(config)));
    let plain = Server::start(None);
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, made.cert.pem()).unwrap();
    let start = |file: &std::path::Path| {
        let mut command = builtin();
        command.env("SSL_CERT_FILE", file).env_remove("SSL_CERT_DIR");
        Driver::start(command)
    };
    let there = |path: &str| json!({"url": format!("https://localhost:{}{path}", server.address.port())});
    let mut driver = start(&trusted);
    assert_eq!(ask(&mut driver, &there("/")).value()["status"], 200);
    ask(&mut driver, &there(&format!("/to?{}", plain.url("/")))).is(ErrorKind::Refused, "not encrypted");
    let by_address = json!({"url": format!("https://{}/", server.address)});
    ask(&mut driver, &by_address).is(ErrorKind::Failed, "certificate");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&trusted, other.cert.pem()).unwrap();
    ask(&mut start(&trusted), &there("/")).is(ErrorKind::Failed, "certificate");
}
