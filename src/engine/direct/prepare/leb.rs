//! Numbers as WebAssembly writes them: seven bits a byte, the lowest first.

pub(super) fn unsigned(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(low(value) | 0x80);
        value >>= 7;
    }
    to.push(low(value));
}

pub(super) fn signed(to: &mut Vec<u8>, mut value: i64) {
    // The last byte's bit 6 is the sign.
    while !(-0x40..0x40).contains(&value) {
        to.push(low(value.cast_unsigned()) | 0x80);
        value >>= 7;
    }
    to.push(low(value.cast_unsigned()));
}

/// Overwrites a number with one that is no larger, in as many bytes.
pub(super) fn overwrite(at: &mut [u8], mut value: u32) {
    if let Some((last, rest)) = at.split_last_mut() {
        for byte in rest {
            *byte = low(value.into()) | 0x80;
            value >>= 7;
        }
        *last = low(value.into());
    }
}

/// How many bytes the number takes with which these begin.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    Some(bytes.iter().position(|byte| byte & 0x80 == 0)? + 1)
}

fn low(value: u64) -> u8 {
    (value & 0x7f) as u8
}

#[cfg(test)]
mod tests {
    use wasmparser::BinaryReader;

    use super::*;

    #[test]
    fn numbers_are_read_as_they_were_written() {
        for value in [0, 1, 63, 64, 127, 128, 8191, 8192, i64::from(i32::MAX), i64::MAX] {
            for value in [value, -value, -value - 1] {
                let (mut plain, mut with_sign) = (Vec::new(), Vec::new());
                unsigned(&mut plain, value.cast_unsigned());
                signed(&mut with_sign, value);
                assert_eq!(BinaryReader::new(&plain, 0).read_var_u64().unwrap(), value.cast_unsigned());
                assert_eq!(BinaryReader::new(&with_sign, 0).read_var_i64().unwrap(), value);
                assert_eq!(
                    (length(&plain), length(&plain[1..])),
                    (Some(plain.len()), length(&plain).filter(|n| *n > 1).map(|n| n - 1))
                );
            }
        }
    }

    #[test]
    fn a_smaller_number_takes_the_place_of_a_larger_one() {
        for (before, after) in [(0, 0), (300, 0), (300, 127), (u32::MAX, 1), (u32::MAX, u32::MAX)] {
            let mut bytes = Vec::new();
            unsigned(&mut bytes, before.into());
            overwrite(&mut bytes, after);
            let mut reader = BinaryReader::new(&bytes, 0);
            assert_eq!((reader.read_var_u32().unwrap(), reader.eof()), (after, true));
        }
    }
}
