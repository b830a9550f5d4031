//! Layouts by their sizes, and any bytes at all. That the kernel agrees is shown by the tests of `image`, which mount.

use super::*;
use proptest::prelude::*;

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(REQUEST_HEADER_BYTES + body.len()).expect("short");
    let mut bytes = [length, opcode].map(u32::to_ne_bytes).concat();
    bytes.extend([RESENT | 6, 7_u64].map(u64::to_ne_bytes).concat());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

#[track_caller]
fn check(opcode: u32, body: &[u8], expected: Operation<'_>) {
    let bytes = request(opcode, body);
    let parsed = parse(&bytes).expect("a request");
    assert_eq!((parsed.unique, parsed.node, parsed.operation), (RESENT | 6, 7, expected));
    assert!(parsed.is_resent());
}

#[test]
fn requests_are_what_they_say() {
    check(1, b"name\0", Operation::LookUp { name: b"name" });
    check(2, &[0; 8], Operation::Forget);
    check(42, &[], Operation::Forget);
    let read = [&[0; 8][..], &9_u64.to_ne_bytes(), &4096_u32.to_ne_bytes(), &[0; 20]].concat();
    check(15, &read, Operation::Read { offset: 9, bytes: 4096 });
    let old = [7_u32, 23, 0, 1].map(u32::to_ne_bytes).concat();
    check(26, &old, Operation::Init { major: 7, minor: 23, features: 1 });
    let new = [7_u32, 45, 0, 1 << 30 | 1, 1 << 7].map(u32::to_ne_bytes).concat();
    let all = features::EXTENDED | features::ASYNC_READ | features::RESEND;
    check(26, &new, Operation::Init { major: 7, minor: 45, features: all });
    check(36, &5_u64.to_ne_bytes(), Operation::Interrupt { unique: 5 });
    check(4242, b"anything", Operation::Other(4242));
}

#[test]
fn what_is_cut_short_is_refused() {
    for (opcode, body) in
        [(1, &b"name"[..]), (1, b"a/b\0"), (1, b"\0"), (1, b"a\0b\0"), (15, &[0; 19]), (26, &[0; 15]), (36, &[0; 7])]
    {
        let error = parse(&request(opcode, body)).expect_err("half a request");
        assert_eq!((error.opcode, error.unique), (opcode, Some(RESENT | 6)));
    }
    let mut longer = request(17, &[]);
    longer.push(0);
    parse(&longer).expect_err("another length than it says");
    assert_eq!(parse(&[0; 39]).expect_err("no header").unique, None);
    let mut extended = [7_u32, 45, 0, 1 << 30].map(u32::to_ne_bytes).concat();
    parse(&request(26, &extended)).expect_err("the second word is missing");
    extended.extend([0; 4]);
    parse(&request(26, &extended)).expect("now it is there");
}

#[test]
fn answers_have_the_sizes_of_their_structures() {
    let init = InitAnswer { minor: 45, features: features::RESEND | 1, read_bytes_max: 1 << 20, background_max: 100 };
    let init = init_answer(3, init);
    assert_eq!(init.len(), ANSWER_HEADER_BYTES + 64);
    assert_eq!(u32_at(&init, 16 + 4), Some(MINOR), "not more than we know");
    assert_eq!(u32_at(&init, 16 + 12), Some(1));
    assert_eq!(u32_at(&init, 16 + 32), Some(1 << 7));
    assert_eq!(entry_answer(3, 9, 4096).len(), ANSWER_HEADER_BYTES + 128);
    assert_eq!(attributes_answer(3, Attributes::Directory).len(), ANSWER_HEADER_BYTES + 104);
    assert_eq!(open_answer(3).len(), ANSWER_HEADER_BYTES + 16);
    let status = status_answer(3);
    assert_eq!(status.len(), ANSWER_HEADER_BYTES + 80);
    assert_eq!((u32_at(&status, 0), u32_at(&status, 4), u64_at(&status, 8)), (Some(96), Some(0), Some(3)));
    let error = header(3, Err(Errno::IO), 0);
    assert_eq!(u32_at(&error, 4), Some((-5_i32).cast_unsigned()));
    assert_eq!((u32_at(&resend(), 4), u64_at(&resend(), 8)), (Some(7), Some(0)));
}

proptest! {
    /// No bytes panic, and what is accepted lies inside them.
    #[test]
    fn any_bytes_are_a_request_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..200), opcode in 0_u32..60, whole: bool) {
        if whole && bytes.len() >= 8 {
            let length = u32::try_from(bytes.len()).expect("short");
            bytes[..8].copy_from_slice(&[length, opcode].map(u32::to_ne_bytes).concat());
        }
        match parse(&bytes) {
            Ok(request) => {
                prop_assert!(bytes.len() >= REQUEST_HEADER_BYTES);
                if let Operation::LookUp { name } = request.operation {
                    prop_assert!(name.len() < bytes.len() - REQUEST_HEADER_BYTES);
                }
            }
            Err(error) => prop_assert_eq!(error.bytes, bytes.len()),
        }
    }
}
