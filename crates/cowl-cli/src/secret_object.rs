//! `--object secret,...`: passwords for encrypted images, checked when given.
//!
//! Nothing reads them yet, because encrypted images are refused; scripts pass them anyway, and a
//! mistake in one should show now. No other kind of object exists here.

use crate::failure::Failure;
use crate::option_list::OptionList;

/// A secret as defined on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretObject {
    /// What other options call it.
    pub(crate) id: String,
}

/// Reads the definition `text` and adds it to `secrets`.
pub(crate) fn add(secrets: &mut Vec<SecretObject>, text: &str) -> Result<(), Failure> {
    let secret = parse(text).map_err(Failure::usage)?;
    if secrets.iter().any(|known| known.id == secret.id) {
        return Err(Failure::usage(format!(
            "attempt to add duplicate property '{}' to object (type 'container')",
            secret.id
        )));
    }
    secrets.push(secret);
    Ok(())
}

fn parse(text: &str) -> Result<SecretObject, String> {
    let list = if text.starts_with('{') { from_json(text)? } else { from_list(text) };
    match list.get("qom-type") {
        None | Some("") => return Err("Parameter 'qom-type' is missing".into()),
        Some("secret") => {}
        Some(other) => return Err(format!("Parameter 'qom-type' does not accept value '{other}'")),
    }
    for (key, _) in list.iter() {
        if !["qom-type", "id", "data", "file", "format", "keyid", "iv"].contains(&key) {
            return Err(format!("Parameter '{key}' is unexpected"));
        }
    }
    let id = list.get("id").ok_or("Parameter 'id' is missing")?;
    if !is_identifier(id) {
        return Err(
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, \
                    '-', '.', '_', starting with a letter."
                .into(),
        );
    }
    match list.get("format") {
        None | Some("raw" | "base64") => {}
        Some(other) => return Err(format!("Parameter 'format' does not accept value '{other}'")),
    }
    match (list.get("data"), list.get("file")) {
        (Some(_), Some(_)) => return Err("'file' and 'data' are mutually exclusive".into()),
        (None, None) => return Err("Either 'file' or 'data' must be provided".into()),
        _ => {}
    }
    Ok(SecretObject { id: id.into() })
}

fn from_list(text: &str) -> OptionList {
    OptionList::parse(text, Some("qom-type"))
}

fn from_json(text: &str) -> Result<OptionList, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| format!("JSON parse error, {error}"))?;
    let mut list = OptionList::default();
    for (key, value) in object {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        list.append(OptionList::parse(&format!("{key}={}", value.replace(',', ",,")), None));
    }
    Ok(list)
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn secrets_are_accepted_in_both_spellings() {
        for text in [
            "secret,id=a,data=x,,y",
            "secret,id=a-1.b_c,file=f,format=base64",
            r#"{"qom-type":"secret","id":"a","data":"x,y"}"#,
        ] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_img() {
        for (text, message) in [
            ("", "Parameter 'qom-type' is missing"),
            ("x", "Parameter 'qom-type' does not accept value 'x'"),
            ("secret,data=b", "Parameter 'id' is missing"),
            ("secret,id=a", "Either 'file' or 'data' must be provided"),
            ("secret,id=a,data=x,foo=1", "Parameter 'foo' is unexpected"),
            ("secret,id=a,data=x,file=y", "'file' and 'data' are mutually exclusive"),
            ("secret,id=a,format=foo,data=x", "Parameter 'format' does not accept value 'foo'"),
        ] {
            assert_eq!(parse(text).unwrap_err(), message, "{text}");
        }
        assert!(parse("secret,id=9,data=x").unwrap_err().starts_with("Parameter 'id' expects"));
    }
}
