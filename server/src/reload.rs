//! Which settings a running node may be told anew (SIGHUP), and which only at its start.
//!
//! 1. Every field of [`Settings`] stands in one table, `Settings::fields`; the compiler refuses a field that does not.
//! 2. New settings are taken whole or not at all: one changed field that is fixed refuses all of them, by name.

use crate::{ConfigError, Settings};

/// When a field is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// At the start and on SIGHUP.
    OnReload,
    /// At the start only, for this reason.
    AtStart(&'static str),
}

/// One setting: how the file names it, when it is read, and whether it is another one.
struct Field {
    name: &'static str,
    read: Read,
    changed: bool,
}

impl Settings {
    /// What changes from these settings to `new`, by name, all of which may be changed; or which may not, and why.
    pub fn reload(&self, new: &Self) -> Result<Vec<&'static str>, ConfigError> {
        let changed: Vec<Field> =
            self.fields(new).into_iter().filter(|field| field.changed).collect();
        let fixed: Vec<String> = changed
            .iter()
            .filter_map(|field| match field.read {
                Read::OnReload => None,
                Read::AtStart(why) => Some(format!("{} ({why})", field.name)),
            })
            .collect();
        if fixed.is_empty() {
            return Ok(changed.into_iter().map(|field| field.name).collect());
        }
        Err(ConfigError(format!(
            "not while the node runs: {}; nothing was changed. Restart the node, or put back what it was started with",
            fixed.join(", ")
        )))
    }

    /// Every field and when it is read, in the order in which the settings list them.
    #[must_use]
    pub fn reading() -> Vec<(&'static str, Read)> {
        let none = Self::default();
        none.fields(&none).into_iter().map(|field| (field.name, field.read)).collect()
    }

    /// The table. No `..`: a new field does not compile before it is here.
    fn fields(&self, new: &Self) -> Vec<Field> {
        let Self {
            data,
            listen,
            nodes,
            id,
            cores,
            transport,
            rdma_device,
            poll,
            key,
            durability,
            size,
            memory,
            lease,
            only_uid,
            adopt,
            metrics,
            log,
        } = new;
        let fixed = |name, changed, why| Field { name, read: Read::AtStart(why), changed };
        let open = |name, changed| Field { name, read: Read::OnReload, changed };
        vec![
            fixed("data", *data != self.data, "its cores have it open"),
            fixed("listen", *listen != self.listen, "clients are connected to it"),
            fixed(
                "nodes",
                *nodes != self.nodes,
                "the map follows from it; a node that moves is restarted, and everybody learns its address from it",
            ),
            fixed("id", *id != self.id, "the data belongs to this node"),
            fixed("cores", *cores != self.cores, "shards and journals belong to cores"),
            fixed("transport", *transport != self.transport, "its cores listen with it"),
            fixed("rdma-device", *rdma_device != self.rdma_device, "memory is registered with it"),
            fixed("poll", *poll != self.poll, "a core's ring is made for it"),
            fixed(
                "key",
                *key != self.key,
                "peers have proven the other one, and the cluster is named after it",
            ),
            fixed(
                "durability",
                *durability != self.durability,
                "what was acknowledged was promised by the other one",
            ),
            fixed("size", *size != self.size, "the volume is made at the first start"),
            fixed("memory", *memory != self.memory, "it is mapped, and registered with devices"),
            fixed("lease", *lease != self.lease, "sessions live by the lease that they began with"),
            fixed(
                "only-uid",
                *only_uid != self.only_uid,
                "files are open that it did not let through",
            ),
            // To take it out again, when it has done its work, changes nothing.
            fixed(
                "adopt",
                *adopt == Some(true) && self.adopt != Some(true),
                "it is about the data's first start here",
            ),
            open("metrics", *metrics != self.metrics),
            open("log", *log != self.log),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of which only the field with this name says something, as a file would.
    fn only(name: &str) -> Settings {
        let value = match name {
            "id" | "lease" | "only-uid" => "7",
            "adopt" => "true",
            _ => "\"7\"",
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealfs.toml");
        std::fs::write(&path, format!("{name} = {value}\n")).unwrap();
        Settings::from_file(&path).unwrap()
    }

    #[test]
    fn every_field_is_taken_or_refused_by_name_as_the_table_says() {
        let fields = Settings::reading();
        let mut open = Vec::new();
        for (name, read) in &fields {
            let result = Settings::default().reload(&only(name));
            match read {
                Read::OnReload => {
                    assert_eq!(result, Ok(vec![*name]));
                    open.push(*name);
                }
                Read::AtStart(why) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(name) && error.contains(why), "{error}");
                }
            }
        }
        assert_eq!(open, ["metrics", "log"]);
    }

    #[test]
    fn the_table_names_the_fields_as_the_file_does() {
        let names: Vec<&str> = Settings::reading().iter().map(|(name, _)| *name).collect();
        let unknown = std::panic::catch_unwind(|| only("colour"));
        assert!(unknown.is_err());
        // Each is a field of the file, none is another's, and none is missing: `fields` lists them all.
        names.iter().for_each(|name| assert_ne!(only(name), Settings::default(), "{name}"));
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
    }

    #[test]
    fn one_fixed_field_refuses_the_open_ones_beside_it() {
        let new = Settings { log: Some("info".into()), id: Some(2), ..Settings::default() };
        let error = Settings::default().reload(&new).unwrap_err().to_string();
        assert!(error.contains("id (") && error.contains("nothing was changed"), "{error}");
        assert_eq!(new.reload(&new), Ok(Vec::new()), "what stays the same is no change");
        let adopting = Settings { adopt: Some(true), ..Settings::default() };
        assert_eq!(adopting.reload(&Settings::default()), Ok(Vec::new()), "it is done");
    }
}
