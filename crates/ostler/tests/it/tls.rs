//! Servers elsewhere that are reached over TLS, with certificates made here.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::client::{Http, Session, text};
use crate::support::Daemon;
use crate::upstream::Elsewhere;

/// An authority that nobody but its holder knows.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// As the system keeps those it trusts.
    fn write(&self, to: &Path) {
        std::fs::write(to, self.0.pem()).expect("a file");
    }

    /// What a server shows that is known by `name`.
    fn config(&self, name: &str) -> ServerConfig {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = versions.expect("versions").with_no_client_auth();
        config.with_single_cert(vec![certificate.der().clone()], key).expect("a certificate and its key")
    }
}

/// TLS before a server that speaks without; its port.
async fn before(server: u16, config: ServerConfig) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((outside, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust it hangs up.
                let Ok(mut outside) = acceptor.accept(outside).await else { return };
                let Ok(mut inside) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_reached_over_tls_if_its_certificate_is_trusted_and_its_own() {
    let (known, unknown) = (Authority::new("known"), Authority::new("unknown"));
    let dir = tempfile::tempdir().expect("a directory");
    let trusted = dir.path().join("authorities.pem");
    known.write(&trusted);
    // The other tests there use one port.
    let first = crate::upstream::range(9).0 + 5;
    let [_http, _ws] =
        [("http", first), ("ws", first + 1)].map(|(wire, port)| Elsewhere::start(wire, port, &[]));
    let mut config = String::new();
    for (name, scheme, port, shown) in [
        ("https", "https", first, known.config("localhost")),
        ("wss", "wss", first + 1, known.config("localhost")),
        ("stranger", "https", first, unknown.config("localhost")),
        ("odd", "wss", first + 1, unknown.config("localhost")),
        ("other", "https", first, known.config("elsewhere.test")),
    ] {
        let port = before(port, shown).await;
        config +=
            &format!("[servers.{name}]\nurl = \"{scheme}://localhost:{port}/mcp\"\nscope = \"shared\"\n");
    }
    let daemon = Daemon::start(&config, &[("SSL_CERT_FILE", trusted.to_str().expect("text"))]);
    let http = Http::new(daemon.address());
    for name in ["https", "wss"] {
        let session = Session::open(&http, name).await;
        assert_eq!(text(&session.call(1, "echo", &json!({"text": name})).await), name);
    }
    for (name, why) in
        [("stranger", "UnknownIssuer"), ("odd", "UnknownIssuer"), ("other", "not valid for name")]
    {
        let told = daemon.wait_row(name, "it is refused", |row| {
            row["reason"].as_str().is_some_and(|reason| reason.contains("certificate"))
        });
        let reason = told["reason"].as_str().expect("text");
        assert!(reason.contains(why) && reason.contains("SSL_CERT_FILE"), "{name}: {reason}");
    }
}
