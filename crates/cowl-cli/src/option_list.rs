//! Lists of `key=value`, as `-o`, `--object` and `--image-opts` take them.
//!
//! A comma inside a value is doubled. A key without a value is a switch: `key` means `key=on` and
//! `nokey` means `key=off`. A later value of a key replaces an earlier one.
//!
//! Not here: which keys exist and what their values mean.

/// Keys and values in the order given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OptionList {
    entries: Vec<(String, String)>,
}

impl OptionList {
    /// Reads `text`. Where `implied` is given, a first element without `=` is the value of that
    /// key.
    pub(crate) fn parse(text: &str, implied: Option<&str>) -> Self {
        let mut entries = Vec::new();
        for element in split(text) {
            let entry = match (element.split_once('='), implied) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(key)) if entries.is_empty() => (key.to_owned(), element),
                (None, _) => switch(element),
            };
            entries.push(entry);
        }
        Self { entries }
    }

    /// Adds the entries of `other` behind those of this list.
    pub(crate) fn append(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// Adds a value of `key`, if there is one.
    pub(crate) fn set(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.entries.push((key.to_owned(), value.to_owned()));
        }
    }

    /// All entries, repeated keys included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of `key` that counts.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.iter().filter(|(given, _)| *given == key).last().map(|(_, value)| value)
    }
}

/// Whether `text` could be extended by another list: no separator stands at its ends.
pub(crate) fn is_valid(text: &str) -> bool {
    let commas_at_end = text.bytes().rev().take_while(|&byte| byte == b',').count();
    !text.is_empty() && !text.starts_with(',') && commas_at_end % 2 == 0
}

/// Whether the list asks for help instead.
pub(crate) fn asks_for_help(text: &str) -> bool {
    split(text).iter().any(|element| element == "help" || element == "?")
}

fn split(text: &str) -> Vec<String> {
    let mut elements = Vec::new();
    let mut current = String::new();
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        if character != ',' {
            current.push(character);
        } else if rest.next_if_eq(&',').is_some() {
            current.push(',');
        } else {
            elements.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        elements.push(current);
    }
    elements
}

fn switch(element: String) -> (String, String) {
    match element.strip_prefix("no") {
        Some(key) if !key.is_empty() => (key.to_owned(), "off".into()),
        _ => (element, "on".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{OptionList, asks_for_help, is_valid};

    fn parse(text: &str) -> Vec<(String, String)> {
        OptionList::parse(text, None).entries
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn doubled_commas_stand_for_one() {
        assert_eq!(parse("a=x,,y,b=1"), pairs(&[("a", "x,y"), ("b", "1")]));
        assert_eq!(parse("a=,b=c=d"), pairs(&[("a", ""), ("b", "c=d")]));
    }

    #[test]
    fn a_key_alone_is_a_switch() {
        assert_eq!(parse("lazy,nolazy"), pairs(&[("lazy", "on"), ("lazy", "off")]));
    }

    #[test]
    fn the_first_element_may_have_an_implied_key() {
        let list = OptionList::parse("secret,id=a", Some("qom-type"));
        assert_eq!(list.entries, pairs(&[("qom-type", "secret"), ("id", "a")]));
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(OptionList::parse("a=1,a=2", None).get("a"), Some("2"));
    }

    #[test]
    fn lists_that_could_swallow_their_neighbour_are_invalid() {
        for text in ["", ",a=1", "a=1,", "a=1,,,"] {
            assert!(!is_valid(text), "{text}");
        }
        for text in ["a", "a=1,,", "a=1,b=2"] {
            assert!(is_valid(text), "{text}");
        }
        assert!(asks_for_help("a=1,help"));
        assert!(asks_for_help("?"));
        assert!(!asks_for_help("a=help"));
    }
}
