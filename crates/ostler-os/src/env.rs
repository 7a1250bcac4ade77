//! The environment of a server: an allow-list of the daemon's, plus what the configuration names. Servers that
//! inherit everything inherit every secret of the daemon (pi-mcp-adapter#509).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// What a server may always inherit: where things are and how to talk to the outside, and no secret by itself.
///
/// Proxy variables may hold a password in their URL; they are here because without them nothing that downloads
/// (`npx`, `uvx`) starts behind a proxy. Settings of package managers (`npm_config_*`, `UV_*`, `PIP_*`) are not:
/// they can hold registry tokens, and caches and configuration files are found through `HOME` and `XDG_*` without
/// them. A server that needs one names it in `inherit_env`.
pub const ALLOWED: [&str; 32] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TERM",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_DIRS",
    "XDG_CONFIG_HOME",
    "XDG_DATA_DIRS",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "DISPLAY",
    "WAYLAND_DISPLAY",
];

/// Every variable that begins so may be inherited, too.
pub const ALLOWED_PREFIXES: [&str; 1] = ["LC_"];

/// Whether a server may inherit `name` without being asked.
pub fn is_allowed(name: &OsStr) -> bool {
    ALLOWED.iter().any(|allowed| name == *allowed)
        || ALLOWED_PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

/// The whole environment of a server, sorted by name: of `source` what is allowed or named in `inherit`, then
/// `set`, which wins.
pub fn clean(
    inherit: &[String],
    set: &BTreeMap<String, String>,
    source: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let wanted =
        |name: &OsStr| is_allowed(name) || inherit.iter().any(|inherited| name == inherited.as_str());
    let mut env: BTreeMap<OsString, OsString> = source.into_iter().filter(|(name, _)| wanted(name)).collect();
    env.extend(set.iter().map(|(name, value)| (name.into(), value.into())));
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        list.iter().map(|&(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn secrets_stay_and_what_is_named_comes() {
        let source = pairs(&[
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("GITHUB_TOKEN", "t"),
            ("OSTLER_INSTANCE", "of the daemon itself"),
            ("npm_config__auth", "u"),
            ("PATHS", "not PATH"),
        ]);
        let set =
            BTreeMap::from([("MODE".to_owned(), "x".to_owned()), ("LC_ALL".to_owned(), "de".to_owned())]);
        let env = clean(&["GITHUB_TOKEN".to_owned(), "ABSENT".to_owned()], &set, source);
        assert_eq!(env, pairs(&[("GITHUB_TOKEN", "t"), ("LC_ALL", "de"), ("MODE", "x"), ("PATH", "/bin")]));
    }
}
