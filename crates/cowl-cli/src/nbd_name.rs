//! Exports of NBD servers as operators write them, brought into one form: a URI.
//!
//! `nbd://...` and `nbd+unix://...` are URIs already; `nbd:HOST:PORT` and `nbd:unix:PATH`, with
//! `:exportname=NAME` or not, are older; lists and JSON have keys below `driver=nbd`.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The URI that `text` is or stands for; `None` when it does not name an export.
pub(crate) fn uri(text: &str) -> Option<Result<String, String>> {
    if cowl::remote_uri(text.as_ref()).is_some() {
        return Some(Ok(text.to_owned()));
    }
    let rest = text.strip_prefix("nbd:")?;
    Some(older(rest).ok_or_else(|| format!("'{text}' does not say where the server is")))
}

fn older(rest: &str) -> Option<String> {
    let (place, export) = match rest.split_once(":exportname=") {
        Some((place, export)) => (place, export),
        None => (rest, ""),
    };
    match place.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Some(unix(path, export)),
        Some(_) => None,
        None => {
            let (host, port) = place.rsplit_once(':')?;
            (!host.is_empty() && !port.is_empty()).then(|| tcp(host, port, export))
        }
    }
}

/// The URI of the keys below `driver=nbd`, as lists and JSON have them.
pub(crate) fn from_keys(keys: &BTreeMap<String, Option<String>>) -> Result<String, String> {
    const KNOWN: [&str; 10] = [
        "export",
        "path",
        "host",
        "port",
        "server.type",
        "server.path",
        "server.host",
        "server.port",
        "open-timeout",
        "reconnect-delay",
    ];
    if let Some(key) = keys.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(format!("Block protocol 'nbd' doesn't support the option '{key}'"));
    }
    let get = |names: [&str; 2]| {
        names.into_iter().find_map(|name| keys.get(name)?.as_deref().filter(|v| !v.is_empty()))
    };
    let export = keys.get("export").and_then(Option::as_deref).unwrap_or_default();
    match (get(["server.path", "path"]), get(["server.host", "host"])) {
        (Some(path), None) => Ok(unix(path, export)),
        (None, Some(host)) => {
            Ok(tcp(host, get(["server.port", "port"]).unwrap_or("10809"), export))
        }
        (Some(_), Some(_)) => Err("path and host may not be used at the same time".to_owned()),
        (None, None) => Err("one of path and host must be specified".to_owned()),
    }
}

/// The URI of an export at a unix socket.
pub(crate) fn unix(path: &str, export: &str) -> String {
    format!("nbd+unix:///{}?socket={}", encoded(export), encoded(path))
}

/// The URI of an export at a port.
pub(crate) fn tcp(host: &str, port: &str, export: &str) -> String {
    let export = encoded(export);
    match host.contains(':') && !host.starts_with('[') {
        true => format!("nbd://[{host}]:{port}/{export}"),
        false => format!("nbd://{host}:{port}/{export}"),
    }
}

/// What would end a part of a URI, as `%` and two digits.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a string takes text"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn older_names_are_brought_into_the_form_of_a_uri() {
        for (name, expected) in [
            ("nbd://h/x", "nbd://h/x"),
            ("nbd+unix:///?socket=s", "nbd+unix:///?socket=s"),
            ("nbd:h:10809", "nbd://h:10809/"),
            ("nbd:h:1:exportname=a b", "nbd://h:1/a%20b"),
            ("nbd:unix:/run/s", "nbd+unix:///?socket=/run/s"),
            ("nbd:unix:/a?b:exportname=x:y", "nbd+unix:///x%3Ay?socket=/a%3Fb"),
            ("nbd:[::1]:2", "nbd://[::1]:2/"),
        ] {
            assert_eq!(uri(name), Some(Ok(expected.to_owned())), "{name}");
        }
        assert_eq!(uri("./nbd://h/x"), None);
        assert_eq!(uri("file:nbd:x"), None);
        for wrong in ["nbd:", "nbd:h", "nbd:unix:", "nbd:h:"] {
            assert!(matches!(uri(wrong), Some(Err(_))), "{wrong}");
        }
    }
}
