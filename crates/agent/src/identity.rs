//! Users and groups as a container's own `/etc/passwd` and `/etc/group` have them.
//!
//! Both files belong to the image: they are read by the confined child, up to a limit, and a line that makes no sense is
//! skipped, as the C library does.

use std::io::Read;

use sampan_wire::agent::{Refusal, User};

use crate::limits::{ACCOUNT_FILE_BYTES_MAX, GROUPS_MAX};

/// Who a process becomes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// The account files of the root that this process stands in.
pub(crate) fn read_accounts() -> (String, String) {
    (read_bounded("/etc/passwd"), read_bounded("/etc/group"))
}

fn read_bounded(path: &str) -> String {
    use rustix::fs::{Mode, OFlags};
    let mut bytes = Vec::new();
    // Nonblocking: the image may well have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if let Ok(file) = rustix::fs::open(path, flags, Mode::empty())
        && rustix::fs::fstat(&file).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
    {
        // What cannot be read is as good as absent: the user is then looked for in what was read.
        drop(std::fs::File::from(file).take(ACCOUNT_FILE_BYTES_MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (_, home) = (fields.next(), fields.next().unwrap_or_default());
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: gid.parse().ok()?, members: fields.next().unwrap_or_default() })
    })
}

/// Resolves a user. `supplemental` is added to whatever groups the files give.
///
/// A name that is not there is an error; a number need not be there. `USER` alone takes its primary group from the files,
/// `USER:GROUP` takes exactly that group. The memberships that the files know of are added otherwise, unless `strict`.
pub(crate) fn resolve(
    user: &User,
    supplemental: &[u32],
    strict: bool,
    passwd: &str,
    group: &str,
) -> Result<Identity, Refusal> {
    let mut identity = match user {
        User::Ids { uid, gid, groups } => {
            let home = accounts(passwd).find(|account| account.uid == *uid).map(|account| account.home.to_owned());
            Identity { uid: *uid, gid: *gid, groups: groups.clone(), home }
        }
        User::Named(text) => resolve_named(text, passwd, group)?,
    };
    let names_group =
        matches!(user, User::Named(text) if text.split_once(':').is_some_and(|(_, group)| !group.is_empty()));
    if !strict && !names_group {
        identity.groups.extend(memberships(identity.uid, passwd, group));
    }
    // The primary group is among them, as in docker and containerd: else a set-gid program could drop it, and with it
    // what is denied to that group.
    identity.groups.push(identity.gid);
    identity.groups.extend_from_slice(supplemental);
    identity.groups.sort_unstable();
    identity.groups.dedup();
    identity.groups.truncate(GROUPS_MAX);
    Ok(identity)
}

/// The groups that name the user of this number among their members.
fn memberships(uid: u32, passwd: &str, group: &str) -> Vec<u32> {
    let Some(account) = accounts(passwd).find(|account| account.uid == uid) else { return Vec::new() };
    let is_member = |entry: &Group<'_>| entry.members.split(',').any(|member| member == account.name);
    groups(group).filter(is_member).map(|entry| entry.gid).take(GROUPS_MAX).collect()
}

fn resolve_named(text: &str, passwd: &str, group: &str) -> Result<Identity, Refusal> {
    let unknown = || Refusal::UnknownUser { user: text.to_owned() };
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // A name wins over a number that looks the same, as in docker.
    let account = accounts(passwd).find(|account| account.name == user).or_else(|| {
        let uid: u32 = user.parse().ok()?;
        accounts(passwd).find(|account| account.uid == uid)
    });
    let uid = match &account {
        Some(account) => account.uid,
        None => user.parse().map_err(|_not_a_number| unknown())?,
    };
    let home = account.as_ref().map(|account| account.home.to_owned());
    let Some(wanted) = wanted_group else {
        return Ok(Identity { uid, gid: account.map_or(0, |account| account.gid), groups: Vec::new(), home });
    };
    let by_name = groups(group).find(|entry| entry.name == wanted).map(|entry| entry.gid);
    let gid = by_name.or_else(|| wanted.parse().ok()).ok_or_else(unknown)?;
    Ok(Identity { uid, gid, groups: Vec::new(), home })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:Web:/var/www:/bin/sh\n7:x:70:71::/seven:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:web\nlogs:x:40:root,web\n:::\n";

    fn named(text: &str) -> Result<Identity, Refusal> {
        resolve(&User::Named(text.into()), &[], false, PASSWD, GROUP)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn resolves_names_and_numbers() {
        assert_eq!(named(""), Ok(identity(0, 0, &[0, 40], Some("/root"))));
        assert_eq!(named("web"), Ok(identity(33, 34, &[34, 40], Some("/var/www"))));
        assert_eq!(named("33"), named("web"));
        assert_eq!(named("web:logs"), Ok(identity(33, 40, &[40], Some("/var/www"))));
        assert_eq!(named("1234"), Ok(identity(1234, 0, &[0], None)));
        assert_eq!(named("1234:55"), Ok(identity(1234, 55, &[55], None)));
        assert_eq!(
            named("7"),
            Ok(identity(70, 71, &[71], Some("/seven"))),
            "a name that looks like a number is a name"
        );
        assert_eq!(named("nobody"), Err(Refusal::UnknownUser { user: "nobody".into() }));
        assert_eq!(named("web:none"), Err(Refusal::UnknownUser { user: "web:none".into() }));
    }

    #[test]
    fn adds_supplemental_groups() {
        let user = User::Ids { uid: 33, gid: 1, groups: vec![9] };
        let strict = resolve(&user, &[5, 9], true, PASSWD, GROUP);
        assert_eq!(strict, Ok(identity(33, 1, &[1, 5, 9], Some("/var/www"))));
        let merged = resolve(&user, &[5, 9], false, PASSWD, GROUP);
        assert_eq!(merged, Ok(identity(33, 1, &[1, 5, 9, 34, 40], Some("/var/www"))));
    }

    proptest! {
        #[test]
        fn any_files_are_survived(user in ".{0,20}", passwd in "[a-z0-9:\n,]{0,400}", group in "[a-z0-9:\n,]{0,400}") {
            drop(resolve(&User::Named(user), &[1], false, &passwd, &group));
        }
    }
}
