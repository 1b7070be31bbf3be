//! `-l`: which internal snapshot is meant.

use crate::failure::Failure;
use crate::option_list::OptionList;

/// An internal snapshot as the operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotName {
    /// An identifier or, when none has it, a name.
    IdOrName(String),
    /// Both parts, each optional, exactly.
    Exact { id: Option<String>, name: Option<String> },
}

impl SnapshotName {
    /// Reads `NAME` or `snapshot.id=ID,snapshot.name=NAME`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::IdOrName(text.into()));
        }
        let list = OptionList::parse(text, None);
        if let Some((key, _)) =
            list.iter().find(|(key, _)| !["snapshot.id", "snapshot.name"].contains(key))
        {
            return Err(Failure::usage(format!("Invalid parameter '{key}'"))
                .within(format!("Failed in parsing snapshot param '{text}'")));
        }
        let part = |key| list.get(key).map(str::to_owned);
        Ok(Self::Exact { id: part("snapshot.id"), name: part("snapshot.name") })
    }
}
