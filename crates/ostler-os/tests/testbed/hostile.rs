//! A program that wants out: `hostile WHAT=OF ...` tries each in turn and says a line about it: `WHAT=OF: ok`, with what came of it, or
//! `WHAT=OF: errno N`. What succeeds outside of a sandbox and fails inside was kept from it by the sandbox.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

/// An answer on this machine takes no time.
const ANSWER: Duration = Duration::from_secs(20);

/// `KEYCTL_GET_KEYRING_ID`, and the session's keyring.
const KEY_OF: (libc::c_long, libc::c_long) = (0, -3);

pub(crate) fn run(attempts: &[String]) {
    for attempt in attempts {
        let (what, of) = attempt.split_once('=').unwrap_or((attempt, ""));
        match try_it(what, of) {
            Ok(got) => super::say(format!("{attempt}: ok {got}").trim_end()),
            Err(error) => {
                super::say(&format!("{attempt}: errno {}", error.raw_os_error().unwrap_or_default()));
            }
        }
    }
}

fn try_it(what: &str, of: &str) -> io::Result<String> {
    let done = |()| String::new();
    match what {
        "read" => std::fs::read_to_string(of),
        "list" => list(of),
        "write" => File::create(of).and_then(|mut file| file.write_all(b"was here")).map(done),
        // Opened only: nothing of the machine is changed if it succeeds.
        "open-to-write" => OpenOptions::new().write(true).open(of).map(drop).map(done),
        "fill" => fill(of).map(done),
        "secret" => secret(of),
        "tcp" => TcpStream::connect(of).map(drop).map(done),
        "udp" => udp(of),
        "unix" => UnixStream::connect(of).map(drop).map(done),
        "abstract" => {
            let address = SocketAddr::from_abstract_name(of)?;
            UnixStream::connect_addr(&address).map(drop).map(done)
        }
        "socket" => called(socket(of.parse().expect("a family"))).map(done),
        "keys" => called(keys()).map(done),
        "user-namespace" => called(unshare(libc::CLONE_NEWUSER)).map(done),
        "mount" => called(mount(of)).map(done),
        other => panic!("unknown: {other}"),
    }
}

fn list(folder: &str) -> io::Result<String> {
    let entries: io::Result<Vec<_>> = std::fs::read_dir(folder)?.collect();
    let mut names: Vec<_> = entries?.iter().map(|entry| entry.file_name().display().to_string()).collect();
    names.sort();
    Ok(names.join(" "))
}

/// Two MiB more than nothing.
fn fill(path: &str) -> io::Result<()> {
    let filled = File::create(path).and_then(|mut file| file.write_all(&vec![1; 2 << 20]));
    let _ = std::fs::remove_file(path);
    filled
}

/// Whether any process that can be seen has this text in its environment or its command line.
fn secret(text: &str) -> io::Result<String> {
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        for file in ["environ", "cmdline"] {
            let mut bytes = Vec::new();
            let read = File::open(path.join(file)).and_then(|mut file| file.read_to_end(&mut bytes));
            let own = "hostile\0";
            let is_own = bytes.windows(own.len()).any(|part| part == own.as_bytes());
            if read.is_ok() && !is_own && bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                return Ok(String::new());
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENOENT))
}

/// Asks, and waits for an answer.
fn udp(address: &str) -> io::Result<String> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

fn called(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "families that the standard library does not know")]
fn socket(family: libc::c_int) -> libc::c_long {
    // SAFETY: makes a descriptor, or none; this process ends soon.
    unsafe { libc::socket(family, libc::SOCK_STREAM, 0) }.into()
}

#[expect(unsafe_code, reason = "keys are no concern of any library here")]
fn keys() -> libc::c_long {
    // SAFETY: takes numbers only, and answers with one.
    unsafe { libc::syscall(libc::SYS_keyctl, KEY_OF.0, KEY_OF.1, 1) }
}

#[expect(unsafe_code, reason = "namespaces are no concern of the standard library")]
fn unshare(flags: libc::c_int) -> libc::c_long {
    // SAFETY: this process has one thread and no memory that depends on its namespaces.
    unsafe { libc::unshare(flags) }.into()
}

#[expect(unsafe_code, reason = "mounts are no concern of the standard library")]
fn mount(on: &str) -> libc::c_long {
    let on = std::ffi::CString::new(on).expect("a path");
    let kind = c"tmpfs".as_ptr();
    // SAFETY: all pointers are to texts that end with 0 and live until it returns.
    unsafe { libc::mount(kind, on.as_ptr(), kind, 0, std::ptr::null()) }.into()
}
