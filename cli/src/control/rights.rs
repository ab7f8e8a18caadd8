//! Who may do what.

use tunnel::peer::Peer;

use crate::daemon::Access;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// To see state, flows and rules.
    Look,
    /// To change something.
    Act,
}

impl Access {
    /// Root may all, admins may all, members of the group may look.
    pub(super) fn grants(&self, peer: &Peer, right: Right) -> bool {
        let acts = peer.uid == 0 || self.admins.contains(&peer.uid);
        acts || right == Right::Look && self.group.is_some_and(|group| peer.groups.contains(&group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_what() {
        let access = Access { group: Some(50), admins: vec![1000] };
        let nobody = Access::default();
        for (name, uid, groups, look, act) in [
            ("root", 0, &[0][..], true, true),
            ("an admin", 1000, &[1000], true, true),
            ("primary group", 1001, &[50], true, false),
            ("supplementary group", 1001, &[1001, 7, 50], true, false),
            ("anybody else", 1001, &[1001, 0], false, false),
        ] {
            let peer = Peer { uid, groups: groups.to_vec() };
            assert_eq!(access.grants(&peer, Right::Look), look, "{name}");
            assert_eq!(access.grants(&peer, Right::Act), act, "{name}");
            assert_eq!(nobody.grants(&peer, Right::Look), uid == 0, "{name}");
        }
    }
}
