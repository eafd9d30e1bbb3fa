//! Which device is opened at the start, and which never is.

use crate::verbs::Failure;

/// The device to open at once: the one that was asked for, or the only one there is. `None`: whichever a route goes through.
/// `found`: all devices, and whether each is an iWARP one.
pub(super) fn choose(
    found: &[(String, bool)],
    wanted: Option<&str>,
) -> Result<Option<String>, Failure> {
    if let Some(wanted) = wanted {
        return match found.iter().find(|(name, _)| name == wanted) {
            Some((_, false)) => Ok(Some(wanted.to_owned())),
            Some((_, true)) => Err(iwarp(wanted)),
            None => {
                let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
                Err(Failure(format!("there is no RDMA device {wanted}; there is {names:?}")))
            }
        };
    }
    let mut usable = found.iter().filter(|(_, is_iwarp)| !is_iwarp);
    match (usable.next(), usable.next(), found.first()) {
        (Some((only, _)), None, _) => Ok(Some(only.clone())),
        (Some(_), Some(_), _) => Ok(None),
        (None, _, Some((name, _))) => Err(iwarp(name)),
        (None, _, None) => Err(Failure(
            "no RDMA device is there (`rdma link`); soft-RoCE makes one: `rdma link add rxe0 type rxe netdev eth0`; or \
             use --transport tcp"
                .into(),
        )),
    }
}

/// Why an iWARP device is not used.
pub(super) fn iwarp(name: &str) -> Failure {
    Failure(format!(
        "device {name} is an iWARP device, which sealfs does not use: there, an RDMA READ needs the reader's memory open \
         to its peer for writing, and a node's memory never is; put the adapter into RoCE mode if it has one, name \
         another with --rdma-device, or use --transport tcp"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(names: &[(&str, bool)]) -> Vec<(String, bool)> {
        names.iter().map(|(name, is_iwarp)| ((*name).to_owned(), *is_iwarp)).collect()
    }

    #[test]
    fn iwarp_is_refused_by_name_with_the_reason_and_the_next_step() {
        let mixed = devices(&[("iw0", true), ("mlx5_0", false)]);
        for refused in [choose(&mixed, Some("iw0")), choose(&devices(&[("iw0", true)]), None)] {
            let Failure(text) = refused.unwrap_err();
            for part in ["iw0", "iWARP", "RDMA READ", "RoCE mode", "--transport tcp"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert_eq!(
            choose(&mixed, None),
            Ok(Some("mlx5_0".into())),
            "the only one that can be used"
        );
    }

    #[test]
    fn a_device_is_opened_at_once_if_there_is_no_doubt_which() {
        let two = devices(&[("a", false), ("b", false)]);
        assert_eq!(choose(&two, None), Ok(None));
        assert_eq!(choose(&two, Some("b")), Ok(Some("b".into())));
        assert!(choose(&two, Some("c")).unwrap_err().0.contains("no RDMA device c"));
        assert!(choose(&[], None).unwrap_err().0.contains("rdma link"));
    }
}
