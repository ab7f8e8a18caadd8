//! What a query's bytes promise about its answer's: the checks before anything is parsed.

/// RFC 1035 4.1.1.
pub(crate) const HEADER: usize = 12;

/// Response, of the two bytes behind the id.
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RCODE: u8 = 0x0f;

/// How an answer fits a query of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// It is the answer.
    Same,
    /// It would be, but for the case of the name's letters.
    CaseLost,
    /// It answers something else, or nothing.
    Other,
}

/// The end of the question in a query of ours: one question, its name not compressed.
pub(crate) fn question_end(query: &[u8]) -> Option<usize> {
    if query.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1 + length;
        match length {
            0 => return query.get(at..at + 4).map(|_| at + 4),
            1..=63 => {}
            _ => return None,
        }
    }
}

/// The id of a message.
pub(crate) fn id(message: &[u8]) -> Option<u16> {
    (message.len() >= HEADER).then(|| u16::from_be_bytes([message[0], message[1]]))
}

/// Sets the id of a message.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(room) = message.first_chunk_mut() {
        *room = id.to_be_bytes();
    }
}

/// Turns the case of each letter of the question's name by one random bit
/// (draft-vixie-dnsext-dns0x20): an answer by somebody who has not seen the query has to guess
/// them too.
pub(crate) fn turn_case(query: &mut [u8], question_end: usize, random: &[u8; 32]) {
    let mut at = HEADER;
    // The name's last byte, type and class have no letters.
    while at + 5 < question_end {
        let length = usize::from(query[at]);
        let end = (at + 1 + length).min(question_end);
        for (place, byte) in query.iter_mut().enumerate().take(end).skip(at + 1) {
            let bit = (place - HEADER) % 256;
            if byte.is_ascii_alphabetic() && random[bit / 8] >> (bit % 8) & 1 == 1 {
                *byte ^= 0x20;
            }
        }
        at = end;
    }
}

/// Whether `answer` answers `query`, which has the same id: a response, of the same kind, to
/// the same question (RFC 5452 9.1). An error may leave the question out.
pub(crate) fn fit(query: &[u8], question_end: usize, answer: &[u8]) -> Fit {
    if answer.len() < HEADER
        || answer[2] & QR == 0
        || (answer[2] ^ query[2]) & OPCODE != 0
        || answer[..2] != query[..2]
    {
        return Fit::Other;
    }
    let asked = &query[HEADER..question_end];
    match (&answer[4..6], answer.get(HEADER..question_end)) {
        ([0, 1], Some(echoed)) if echoed == asked => Fit::Same,
        // Type and class are no letters to be equal in another case.
        ([0, 1], Some(echoed))
            if echoed.eq_ignore_ascii_case(asked)
                && echoed[echoed.len() - 4..] == asked[asked.len() - 4..] =>
        {
            Fit::CaseLost
        }
        ([0, 0], _) if answer[3] & RCODE != 0 => Fit::Same,
        _ => Fit::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query() -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        query.extend(b"\x03www\x07example\x00\x00\x01\x00\x01");
        query.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00");
        query
    }

    #[test]
    fn the_question_has_an_end() {
        let query = query();
        let end = HEADER + 17;
        assert_eq!(question_end(&query), Some(end));
        for length in 0..end {
            assert_eq!(question_end(&query[..length]), None, "{length}");
        }
        let mut compressed = query.clone();
        compressed[HEADER] = 0xc0;
        assert_eq!(question_end(&compressed), None);
        let mut two = query;
        two[5] = 2;
        assert_eq!(question_end(&two), None);
    }

    #[test]
    fn letters_turn_and_nothing_else() {
        let plain = query();
        let end = question_end(&plain).expect("an end");
        for random in [[0; 32], [0xff; 32], [0xa5; 32]] {
            let mut turned = plain.clone();
            turn_case(&mut turned, end, &random);
            assert!(turned.eq_ignore_ascii_case(&plain));
            assert_eq!(turned[end - 5..], plain[end - 5..]);
            assert_eq!(turned == plain, random == [0; 32]);
        }
        let mut turned = plain.clone();
        turn_case(&mut turned, end, &[0xff; 32]);
        assert_eq!(&turned[HEADER..end - 5], b"\x03WWW\x07EXAMPLE");
        // The longest name, whose length bytes may look like letters.
        let mut long = vec![0; HEADER];
        long[5] = 1;
        for _ in 0..3 {
            long.push(63);
            long.extend([b'a'; 63]);
        }
        long.push(61);
        long.extend([b'a'; 61]);
        long.extend([0, 0, 1, 0, 1]);
        let end = question_end(&long).expect("an end");
        turn_case(&mut long, end, &[0xff; 32]);
        assert_eq!(question_end(&long), Some(end));
        assert!(!long[HEADER..].contains(&b'a'));
    }

    #[test]
    fn only_the_answer_fits() {
        let query = query();
        let end = question_end(&query).expect("an end");
        let answer = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut answer = query.clone();
            answer[2] |= QR;
            change(&mut answer);
            fit(&query, end, &answer)
        };
        let turn = |answer: &mut Vec<u8>| answer[HEADER + 1] ^= 0x20;
        assert_eq!(answer(&|_| {}), Fit::Same);
        assert_eq!(answer(&turn), Fit::CaseLost);
        for (name, want, change) in [
            ("a query", Fit::Other, &(|a: &mut Vec<u8>| a[2] &= !QR) as &dyn Fn(&mut Vec<u8>)),
            ("another id", Fit::Other, &|a| a[0] ^= 1),
            ("another opcode", Fit::Other, &|a| a[2] |= 0x28),
            ("another name", Fit::Other, &|a| a[HEADER + 1] = b'x'),
            ("another type", Fit::Other, &|a| a[end - 3] = 28),
            ("a type that is a letter's other case", Fit::Other, &|a| a[end - 1] ^= 0x20),
            ("no question, no error", Fit::Other, &|a| a[5] = 0),
            ("no question, an error", Fit::Same, &|a| (a[5], a[3]) = (0, 1)),
            ("an error and nothing else", Fit::Same, &|a| {
                (a[5], a[3]) = (0, 1);
                a.truncate(HEADER);
            }),
            ("two questions", Fit::Other, &|a| a[5] = 2),
            ("cut", Fit::Other, &|a| a.truncate(end - 1)),
            ("empty", Fit::Other, &Vec::clear),
        ] {
            assert_eq!(answer(change), want, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Of a query as one is made here, whatever the answer's bytes are: an answer that fits has
        /// its question, letter for letter.
        #[test]
        fn no_bytes_fit_but_an_answers(
            head in prop::collection::vec(any::<u8>(), 0..8),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            noise in prop::option::weighted(0.3, prop::collection::vec(any::<u8>(), 0..80)),
            random in any::<[u8; 32]>(),
        ) {
            let mut query = query();
            let end = question_end(&query).expect("an end");
            turn_case(&mut query, end, &random);
            let mut answer = query.clone();
            answer[2] |= QR;
            for (place, byte) in edits {
                let at = place.index(answer.len());
                answer[at] = byte;
            }
            let answer = noise.unwrap_or_else(|| [answer, head].concat());
            let same = answer.get(HEADER..end) == Some(&query[HEADER..end]);
            let empty = answer.len() >= HEADER && answer[4..6] == [0, 0] && answer[3] & RCODE != 0;
            let folded = answer.get(HEADER..end - 4).is_some_and(|question| {
                question.eq_ignore_ascii_case(&query[HEADER..end - 4])
            });
            match fit(&query, end, &answer) {
                Fit::Same => prop_assert!(same || empty, "{answer:?}"),
                Fit::CaseLost => prop_assert!(folded && !same, "{answer:?}"),
                Fit::Other => {}
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            one in any::<bool>(),
        ) {
            if let (true, Some(count)) = (one, bytes.get_mut(4..6)) {
                count.copy_from_slice(&[0, 1]);
            }
            if let Some(end) = question_end(&bytes) {
                let before = bytes.clone();
                turn_case(&mut bytes, end, &[0xff; 32]);
                prop_assert_eq!(question_end(&bytes), Some(end));
                prop_assert!(bytes.eq_ignore_ascii_case(&before));
                fit(&bytes, end, &before);
            }
            id(&bytes);
            set_id(&mut bytes, 7);
        }
    }
}
