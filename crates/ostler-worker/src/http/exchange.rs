//! A request and its answer, and where the answer leads.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, HOST, LOCATION, PROXY_AUTHORIZATION,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use url::{Position, Url};

use super::connect::{Trust, connect};
use super::spec::{Spec, is_http};
use crate::job::{Job, Outcome, error};
use crate::protocol::{ErrorKind, TaskError};

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;

/// What came of a request.
#[derive(Serialize)]
struct Report {
    status: u16,
    /// Where the answer came from, after all redirects.
    url: String,
    /// How many were followed.
    redirects: u32,
    /// By name, in small letters; a header may be there more than once.
    headers: BTreeMap<String, Vec<String>>,
    body: String,
}

/// Sends a request, follows where it is sent on to, gives the last answer.
pub(super) async fn follow(job: &Job, spec: &Spec, trust: &Trust) -> Outcome {
    let mut next = spec.clone();
    let mut followed = 0;
    loop {
        let answer = send(job, &next, trust).await?;
        let Some(there) = sent_on(&answer, &next.url)?.filter(|_| spec.redirects > 0) else {
            return report(job, &next, followed, answer).await;
        };
        if followed == spec.redirects {
            let why = format!("it was sent on {} times, and then to {there}", followed);
            return Err(TaskError { retry: false, ..error(ErrorKind::Failed, &why) });
        }
        followed += 1;
        redirect(&mut next, answer.status(), there)?;
    }
}

/// Where an answer sends its client, if it does.
fn sent_on(answer: &Response<Incoming>, from: &Url) -> Result<Option<Url>, TaskError> {
    let code = answer.status();
    if !matches!(code.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(there) = answer.headers().get(LOCATION) else { return Ok(None) };
    let there = String::from_utf8_lossy(there.as_bytes()).into_owned();
    let bad = |why: &dyn std::fmt::Display| {
        error(ErrorKind::Failed, &format!("{from} sends its clients to {there:?}: {why}"))
    };
    let mut url = from.join(&there).map_err(|why| bad(&why))?;
    is_http(&url).map_err(|why| error(ErrorKind::Refused, &format!("a redirect: {why}")))?;
    if url.fragment().is_none() {
        url.set_fragment(from.fragment());
    }
    Ok(Some(url))
}

/// Makes the request what it is after a redirect (RFC 9110, 15.4).
fn redirect(next: &mut Spec, status: StatusCode, there: Url) -> Result<(), TaskError> {
    if next.url.scheme() == "https" && there.scheme() == "http" {
        let why = format!("{} sends its clients to {there}, which is not encrypted", next.url);
        return Err(error(ErrorKind::Refused, &why));
    }
    if there.origin() != next.url.origin() {
        for secret in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION] {
            next.headers.remove(secret);
        }
    }
    let is_post = next.method == Method::POST;
    let changes = match status {
        StatusCode::SEE_OTHER => next.method != Method::HEAD,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => is_post,
        _ => false,
    };
    if changes {
        next.method = Method::GET;
        next.body = Bytes::new();
        next.headers.remove(CONTENT_TYPE);
        next.headers.remove(CONTENT_ENCODING);
    }
    next.url = there;
    Ok(())
}

async fn send(job: &Job, spec: &Spec, trust: &Trust) -> Result<Response<Incoming>, TaskError> {
    let failed = |why: &dyn std::error::Error| {
        let mut text = format!("{}: {why}", spec.url);
        if let Some(cause) = why.source() {
            text.push_str(&format!(": {cause}"));
        }
        error(ErrorKind::Failed, &text)
    };
    let stream = connect(job, &spec.url, trust).await?;
    let made = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = made.map_err(|why| failed(&why))?;
    // It ends with its last answer; what goes wrong with it is told there.
    tokio::spawn(connection);
    let mut request = Request::new(Full::new(spec.body.clone()));
    *request.method_mut() = spec.method.clone();
    let path = &spec.url[Position::BeforePath..Position::AfterQuery];
    *request.uri_mut() = path.parse().map_err(|why| failed(&why))?;
    *request.headers_mut() = spec.headers.clone();
    let host = &spec.url[Position::BeforeHost..Position::AfterPort];
    request.headers_mut().insert(HOST, HeaderValue::from_str(host).map_err(|why| failed(&why))?);
    sender.send_request(request).await.map_err(|why| failed(&why))
}

async fn report(job: &Job, spec: &Spec, redirects: u32, answer: Response<Incoming>) -> Outcome {
    let (head, mut body) = answer.into_parts();
    let too_large = || {
        let max = spec.max_body;
        error(ErrorKind::Output, &format!("{}: the answer has more than {max} bytes (`max_body`)", spec.url))
    };
    if spec.method != Method::HEAD && body.size_hint().lower() > spec.max_body as u64 {
        return Err(too_large());
    }
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|why| error(ErrorKind::Failed, &format!("{}: its answer broke off: {why}", spec.url)))?;
        let Ok(piece) = frame.into_data() else { continue };
        if whole.len() + piece.len() > spec.max_body {
            return Err(too_large());
        }
        whole.extend_from_slice(&piece);
    }
    job.value_of(&Report {
        status: head.status.as_u16(),
        url: spec.url.to_string(),
        redirects,
        headers: named(&head.headers),
        body: spec.encoding.text(&whole),
    })
}

fn named(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        named.entry(name.as_str().to_owned()).or_default().push(value);
    }
    named
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::rc::Rc;

    use super::*;
    use crate::protocol::ToWorker;
    use crate::wire::Wire;

    #[test]
    fn a_redirect_from_outside_does_not_lead_inside() {
        let inside = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        inside.set_nonblocking(true).unwrap();
        let outside = TcpListener::bind(("127.0.0.99", 0)).unwrap();
        let (here, there) = (outside.local_addr().unwrap(), inside.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = outside.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: http://{there}/\r\ncontent-length: 0\r\n\r\n"
            );
        });
        let line = format!(
            r#"{{"msg":"task","id":"t","attempt":1,"type":"http-request","payload":{{"url":"http://{here}/"}},"allow":{{"network":true}}}}"#
        );
        let Ok(ToWorker::Task(task)) = ToWorker::parse(line.as_bytes()) else { panic!("a task") };
        let job = Job::new(Rc::new(RefCell::new(Wire::new())), &task);
        let spec = Spec::of(crate::job::payload(&task).unwrap(), &job).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(follow(&job, &spec, &Trust::default()));
        server.join().unwrap();
        let error = ended.unwrap_err();
        assert!(
            error.kind == ErrorKind::Refused && error.message.contains("this machine's own"),
            "{error:?}"
        );
        assert!(inside.accept().is_err(), "it was connected to");
    }
}
