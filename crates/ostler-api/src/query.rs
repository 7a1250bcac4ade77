//! Query strings.

use crate::routes::encode_segment;

/// These names and values as a query string, without its `?`.
pub(crate) fn written<'a>(pairs: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        encode_segment(&mut text, &value);
    }
    text
}
