//! Opaque cursors: where a list goes on. Base64url of a version byte, the list's tag, the
//! position and a check sum. The sum catches what was cut or mistyped; it keeps no secret,
//! because a position opens nothing that the filters do not.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::problem::Problem;
use crate::domain::Id;

const VERSION: u8 = 1;

/// What positions of a list are.
pub trait Position: Copy {
    const LEN: usize;
    fn write(self, out: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Position for Id {
    const LEN: usize = 16;

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        uuid::Uuid::from_slice(bytes).ok().map(Id)
    }
}

impl Position for i64 {
    const LEN: usize = 8;

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(i64::from_be_bytes).filter(|position| *position >= 0)
    }
}

/// Which list a cursor belongs to. One list's cursor is refused by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum List {
    Jobs = b'j',
    Events = b'e',
    Deliveries = b'd',
}

/// The cursor that continues after `position`.
pub fn encode<P: Position>(list: List, position: P) -> String {
    let mut bytes = Vec::with_capacity(2 + P::LEN + 4);
    bytes.extend([VERSION, list as u8]);
    position.write(&mut bytes);
    bytes.extend(sum(&bytes));
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where to continue; 422 for what is not a cursor of this list.
pub fn decode<P: Position>(list: List, cursor: &str) -> Result<P, Problem> {
    let bad = || {
        let message = "is not a cursor of this list; use next_cursor of the last page as it is, or leave it out";
        Problem::field("cursor", "bad_cursor", message)
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    let (head, given) = bytes.split_last_chunk::<4>().ok_or_else(bad)?;
    match head {
        [VERSION, tag, position @ ..] if *tag == list as u8 && *given == sum(head) => P::read(position).ok_or_else(bad),
        _ => Err(bad()),
    }
}

/// FNV-1a, folded to 32 bits.
fn sum(bytes: &[u8]) -> [u8; 4] {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    ((hash ^ (hash >> 32)) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_only() {
        let id = Id::new();
        let cursor = encode(List::Jobs, id);
        assert_eq!(decode::<Id>(List::Jobs, &cursor).unwrap(), id);
        assert!(decode::<Id>(List::Events, &cursor).is_err());
        assert!(decode::<i64>(List::Jobs, &cursor).is_err());
        assert_eq!(decode::<i64>(List::Events, &encode(List::Events, 7_i64)).unwrap(), 7);
    }

    #[test]
    fn any_change_is_noticed() {
        let cursor = encode(List::Jobs, Id::new());
        for at in 0..cursor.len() {
            for other in ['A', 'B', 'z', '-', '!'] {
                let mut changed: Vec<char> = cursor.chars().collect();
                if changed[at] != other {
                    changed[at] = other;
                    let changed: String = changed.into_iter().collect();
                    assert!(decode::<Id>(List::Jobs, &changed).is_err(), "{changed}");
                }
            }
            assert!(decode::<Id>(List::Jobs, &cursor[..at]).is_err());
        }
    }

    proptest! {
        #[test]
        fn nothing_made_up_is_taken(text in ".{0,60}") {
            prop_assert!(decode::<Id>(List::Jobs, &text).is_err());
            prop_assert!(decode::<i64>(List::Events, &text).is_err());
        }
    }
}
