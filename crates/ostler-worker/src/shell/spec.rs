//! What a `shell-command` asks for, made sure of before anything is started.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ostler_os::command::Command;
use serde::Deserialize;

use super::output::Encoding;
use crate::job::error;
use crate::protocol::{Allow, ErrorKind, TaskError};

/// Most arguments.
const MAX_ARGS: usize = 10_000;
/// Most bytes of one argument or variable: the kernel's own bound is 128 KiB.
const MAX_ARG: usize = (128 << 10) - 1;
/// Bytes kept of each of the two outputs where nothing is said.
const OUTPUT: usize = 64 << 10;
/// Most bytes that can be asked for.
const MAX_OUTPUT: usize = 8 << 20;
/// Where programs are looked for when the worker does not know either.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The payload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The program and its arguments.
    argv: Option<Vec<String>>,
    /// Or, with `shell`, a line for `/bin/sh`.
    command: Option<String>,
    #[serde(default)]
    shell: bool,
    /// Where; the worker's own folder otherwise.
    cwd: Option<PathBuf>,
    /// Variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Names of variables that it shall have from the worker.
    #[serde(default)]
    inherit: Vec<String>,
    #[serde(default)]
    stdin: String,
    /// Whether a status other than 0 is a failure.
    #[serde(default = "yes")]
    check: bool,
    /// Bytes to be kept of each output.
    max_output: Option<usize>,
    #[serde(default)]
    encoding: Encoding,
}

fn yes() -> bool {
    true
}

/// A command that can be started.
pub(super) struct Spec {
    pub(super) command: Arc<Command>,
    pub(super) stdin: Vec<u8>,
    pub(super) check: bool,
    pub(super) max_output: usize,
    pub(super) encoding: Encoding,
}

fn invalid(message: &str) -> TaskError {
    error(ErrorKind::Invalid, message)
}

impl Spec {
    pub(super) fn of(asked: Asked, allow: &Allow) -> Result<Self, TaskError> {
        let cwd = folder(asked.cwd.as_deref(), allow)?;
        let env = environment(asked.env, &asked.inherit)?;
        let argv = argv(asked.argv, asked.command, asked.shell)?;
        let program = find(&argv[0], &cwd, env.get(OsStr::new("PATH")))?;
        let max_output = asked.max_output.unwrap_or(OUTPUT);
        if max_output > MAX_OUTPUT {
            return Err(invalid(&format!("`max_output` is {max_output}; {MAX_OUTPUT} is the most")));
        }
        let variable = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            whole(name.into_vec())
        };
        Ok(Self {
            command: Arc::new(Command {
                program: whole(program.into_os_string().into_vec())?,
                argv: argv.into_iter().map(|arg| whole(arg.into_bytes())).collect::<Result<_, _>>()?,
                cwd: whole(cwd.into_os_string().into_vec())?,
                env: env.into_iter().map(variable).collect::<Result<_, _>>()?,
            }),
            stdin: asked.stdin.into_bytes(),
            check: asked.check,
            max_output,
            encoding: asked.encoding,
        })
    }

    /// Why it was not started.
    pub(super) fn not_started(&self, why: &io::Error) -> TaskError {
        // Too little memory, too many processes: that may pass.
        let passes = matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory);
        let kind = if passes { ErrorKind::Failed } else { ErrorKind::Invalid };
        error(kind, &format!("{} cannot be started: {why}", self.command.program.to_string_lossy()))
    }
}

fn argv(argv: Option<Vec<String>>, command: Option<String>, shell: bool) -> Result<Vec<String>, TaskError> {
    let argv = match (argv, command, shell) {
        (Some(argv), None, false) => argv,
        (None, Some(command), true) => vec!["/bin/sh".to_owned(), "-c".to_owned(), command],
        (None, Some(_), false) => {
            return Err(invalid(
                "`command` is for a shell and needs `\"shell\": true`; without one, use `argv`",
            ));
        }
        _ => return Err(invalid("either `argv`, or `command` with `\"shell\": true`")),
    };
    match argv.first() {
        None => return Err(invalid("`argv` is empty: its first element is the program")),
        Some(program) if program.is_empty() => return Err(invalid("the program's name is empty")),
        Some(_) => {}
    }
    if argv.len() > MAX_ARGS {
        return Err(invalid(&format!("`argv` has {} elements; {MAX_ARGS} is the most", argv.len())));
    }
    for (at, arg) in argv.iter().enumerate() {
        is_text(arg, &format!("element {at} of `argv`"))?;
    }
    Ok(argv)
}

/// As the kernel takes it.
fn whole(text: Vec<u8>) -> Result<CString, TaskError> {
    CString::new(text)
        .map_err(|why| invalid(&format!("{:?} has a NUL in it", String::from_utf8_lossy(&why.into_vec()))))
}

/// What the kernel takes as one argument or variable.
fn is_text(text: &str, what: &str) -> Result<(), TaskError> {
    if text.contains('\0') {
        return Err(invalid(&format!("{what} has a NUL in it")));
    }
    if text.len() > MAX_ARG {
        return Err(invalid(&format!("{what} has {} bytes; {MAX_ARG} is the most", text.len())));
    }
    Ok(())
}

/// Nothing of the worker's but `PATH`, unless it is asked for by name.
fn environment(
    env: BTreeMap<String, String>,
    inherit: &[String],
) -> Result<BTreeMap<OsString, OsString>, TaskError> {
    let mut all = BTreeMap::new();
    all.insert(OsString::from("PATH"), std::env::var_os("PATH").unwrap_or_else(|| PATH.into()));
    all.insert(OsString::from("LANG"), OsString::from("C.UTF-8"));
    let is_name = |name: &str| !name.is_empty() && !name.contains('=') && !name.contains('\0');
    for name in inherit {
        if !is_name(name) {
            return Err(invalid(&format!("`inherit`: {name:?} is no name of a variable")));
        }
        if let Some(value) = std::env::var_os(name) {
            all.insert(name.into(), value);
        }
    }
    for (name, value) in env {
        if !is_name(&name) {
            return Err(invalid(&format!("`env`: {name:?} is no name of a variable")));
        }
        is_text(&value, &format!("the variable {name}"))?;
        all.insert(name.into(), value.into());
    }
    Ok(all)
}

/// The worker's own folder, which it never leaves.
static OWN: OnceLock<PathBuf> = OnceLock::new();

/// The folder it is started in: below the worker's own, or below one that is allowed.
fn folder(asked: Option<&Path>, allow: &Allow) -> Result<PathBuf, TaskError> {
    let own = match OWN.get() {
        Some(own) => own,
        None => {
            let own = std::env::current_dir().and_then(|own| own.canonicalize());
            let own =
                own.map_err(|why| error(ErrorKind::Failed, &format!("the worker's own folder: {why}")))?;
            OWN.get_or_init(|| own)
        }
    };
    let Some(asked) = asked else { return Ok(own.clone()) };
    let found = own.join(asked);
    let found = found
        .canonicalize()
        .map_err(|why| invalid(&format!("`cwd`: {} cannot be used: {why}", found.display())))?;
    if !found.is_dir() {
        return Err(invalid(&format!("`cwd`: {} is no folder", found.display())));
    }
    let allowed = allow.folders.iter().filter_map(|folder| Path::new(folder).canonicalize().ok());
    if found.starts_with(own) || allowed.into_iter().any(|folder| found.starts_with(folder)) {
        return Ok(found);
    }
    Err(error(
        ErrorKind::Refused,
        &format!(
            "`cwd`: {} is neither in the worker's own folder nor in one that its project allows",
            found.display()
        ),
    ))
}

/// The program as a path, so that it is looked for in one place only, here.
fn find(name: &str, cwd: &Path, path: Option<&OsString>) -> Result<PathBuf, TaskError> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let program = cwd.join(name);
        if is_program(&program) {
            return Ok(program);
        }
        return Err(invalid(&format!("{} is no program", program.display())));
    }
    let path = path.cloned().unwrap_or_else(|| PATH.into());
    let found = std::env::split_paths(&path).map(|folder| cwd.join(folder).join(name));
    found.into_iter().find(|program| is_program(program)).ok_or_else(|| {
        invalid(&format!("there is no program {name} in {} (`PATH`)", Path::new(&path).display()))
    })
}
