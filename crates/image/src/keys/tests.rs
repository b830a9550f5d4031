//! Whose signature counts.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn ring() -> (tempfile::TempDir, KeyRing) {
    let directory = tempfile::tempdir().unwrap();
    let ring = KeyRing::new(directory.path());
    (directory, ring)
}

fn public(ring: &KeyRing, role: KeyRole) -> PublicKey {
    ring.list().unwrap().into_iter().find(|key| key.role == role).unwrap().public
}

#[test]
fn a_node_believes_itself_and_nobody_else() {
    let (directory, one) = ring();
    let (_other_directory, two) = ring();
    let signatures = one.sign(b"statement").unwrap();
    assert_eq!(signatures.len(), 1);
    assert_eq!(one.check(b"statement", &signatures).unwrap().unwrap().role, KeyRole::Node);
    assert_eq!(one.check(b"statement", &[]).unwrap(), Err(TrustError::Unsigned));
    assert_eq!(one.check(b"Statement", &signatures).unwrap(), Err(TrustError::Forged(signatures[0].key)));
    assert_eq!(two.check(b"statement", &signatures).unwrap(), Err(TrustError::Unknown(vec![signatures[0].key])));
    let mode = fs::metadata(directory.path().join("keys/node.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(directory.path().join("keys")).unwrap().count(), 1, "no temporary file stays");
}

#[test]
fn a_key_is_believed_from_its_adding_to_its_removal() {
    let (_one_directory, one) = ring();
    let (_two_directory, two) = ring();
    let key = public(&one, KeyRole::Node);
    let signatures = one.sign(b"x").unwrap();
    two.add("builder", key).unwrap();
    assert!(matches!(two.add("builder", key), Err(KeyError::Taken(_))));
    assert_eq!(two.check(b"x", &signatures).unwrap().unwrap().name, "builder");
    two.remove("builder").unwrap();
    assert!(matches!(two.remove("builder"), Err(KeyError::Unknown(_))));
    assert!(two.check(b"x", &signatures).unwrap().is_err());
    for name in ["", "../x", "node", "fleet", "A", ".x", &"x".repeat(64)] {
        assert!(matches!(two.add(name, key), Err(KeyError::Name(_))), "{name}");
    }
}

#[test]
fn a_fleet_believes_its_members() {
    let (_one_directory, one) = ring();
    let (two_directory, two) = ring();
    let (_, path) = one.generate_fleet().unwrap();
    assert!(matches!(one.generate_fleet(), Err(KeyError::FleetTaken(_))));
    let signatures = one.sign(b"x").unwrap();
    assert_eq!(signatures.len(), 2);
    assert!(two.check(b"x", &signatures).unwrap().is_err());
    fs::copy(path, two_directory.path().join("keys/fleet.key")).unwrap();
    assert_eq!(two.check(b"x", &signatures).unwrap().unwrap().role, KeyRole::Fleet);
}

#[test]
fn one_wrong_signature_spoils_the_rest() {
    let (_directory, one) = ring();
    one.generate_fleet().unwrap();
    let mut signatures = one.sign(b"x").unwrap();
    signatures[1].bytes[5] ^= 1;
    assert_eq!(one.check(b"x", &signatures).unwrap(), Err(TrustError::Forged(signatures[1].key)));
}

#[test]
fn keys_and_signatures_survive_being_text() {
    let (directory, one) = ring();
    let key = public(&one, KeyRole::Node);
    assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
    assert!(key.to_string().to_uppercase().parse::<PublicKey>().is_err());
    assert!("sampan-ed25519-public:00".parse::<PublicKey>().is_err());
    let signatures = one.sign(b"x").unwrap();
    assert_eq!(Signature::read_all(&format!("nonsense {} 12:34 é", signatures[0])), signatures);
    fs::write(directory.path().join("keys/node.key"), "rubbish").unwrap();
    assert!(matches!(one.sign(b"x"), Err(KeyError::Secret(_))));
}

#[test]
fn two_first_uses_at_once_make_one_key() {
    let (_directory, ring) = ring();
    let keys: Vec<PublicKey> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| public(&ring, KeyRole::Node))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]));
}
