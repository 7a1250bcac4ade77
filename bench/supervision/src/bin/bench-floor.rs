//! The least a supervisor can do: `bench-floor COUNT CHILD PIPE` starts COUNT children and starts each again as soon
//! as the kernel says that it ended. No log, no back-off, no orders; SIGTERM ends it and leaves the children.

use std::collections::HashMap;
use std::io;
use std::process::{Command, Stdio};

use rustix::process::WaitOptions;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(count), Some(child), Some(pipe)) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(io::Error::other("usage: bench-floor COUNT CHILD PIPE"));
    };
    let count: usize = count.parse().map_err(io::Error::other)?;
    // A path and nothing else to set up: the standard library uses `posix_spawn`.
    let start = |name: &str| {
        let started = Command::new(&child).args([name, &pipe]).stdin(Stdio::null()).spawn()?;
        Ok::<_, io::Error>(started.id().cast_signed())
    };
    let mut names = HashMap::with_capacity(count);
    for number in 0..count {
        let name = format!("c{number:03}");
        names.insert(start(&name)?, name);
    }
    while let Some((ended, _)) = rustix::process::wait(WaitOptions::empty())? {
        if let Some(name) = names.remove(&ended.as_raw_nonzero().get()) {
            names.insert(start(&name)?, name);
        }
    }
    Ok(())
}
