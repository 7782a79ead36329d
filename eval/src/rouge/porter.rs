//! The Porter stemmer with NLTK's extensions.
//!
//! Source: M. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, as changed by NLTK's
//! `PorterStemmer(mode=NLTK_EXTENSIONS)`; the steps keep their names. A rule list stops at the first suffix that fits,
//! whether or not the rule's condition then holds.

/// The stem of a lowercase word. Bytes other than `aeiouy` count as consonants, digits included.
pub fn stem(word: &str) -> String {
    let mut bytes = word.as_bytes().to_vec();
    stem_in_place(&mut bytes);
    String::from_utf8(bytes).expect("suffixes are ASCII, so whole characters go")
}

/// Words that the rules would get wrong.
const IRREGULAR: [(&[u8], &[u8]); 15] = [
    (b"sky", b"sky"),
    (b"skies", b"sky"),
    (b"dying", b"die"),
    (b"lying", b"lie"),
    (b"tying", b"tie"),
    (b"news", b"news"),
    (b"innings", b"inning"),
    (b"inning", b"inning"),
    (b"outings", b"outing"),
    (b"outing", b"outing"),
    (b"cannings", b"canning"),
    (b"canning", b"canning"),
    (b"howe", b"howe"),
    (b"proceed", b"proceed"),
    (b"exceed", b"exceed"),
];

/// Replaces a lowercase word by its stem.
pub(super) fn stem_in_place(word: &mut Vec<u8>) {
    if word.as_slice() == b"succeed" {
        return;
    }
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word.as_slice()) {
        replace(word, word.len(), stem);
        return;
    }
    if word.len() <= 2 {
        return;
    }
    step1a(word);
    step1b(word);
    step1c(word);
    step2(word);
    step3(word);
    step4(word);
    step5a(word);
    step5b(word);
}

/// A suffix and what takes its place.
type Rule = (&'static [u8], &'static [u8]);

/// Applies the first rule whose suffix fits, if what is left passes `condition`.
fn apply(word: &mut Vec<u8>, rules: &[Rule], condition: impl Fn(&[u8], &[u8]) -> bool) {
    if let Some((suffix, replacement)) = rules.iter().find(|(suffix, _)| word.ends_with(suffix))
        && condition(&word[..word.len() - suffix.len()], suffix)
    {
        replace(word, suffix.len(), replacement);
    }
}

fn replace(word: &mut Vec<u8>, suffix_len: usize, replacement: &[u8]) {
    word.truncate(word.len() - suffix_len);
    word.extend_from_slice(replacement);
}

fn step1a(word: &mut Vec<u8>) {
    if word.len() == 4 && word.ends_with(b"ies") {
        return replace(word, 3, b"ie");
    }
    apply(word, &[(b"sses", b"ss"), (b"ies", b"i"), (b"ss", b"ss"), (b"s", b"")], |_, _| true);
}

fn step1b(word: &mut Vec<u8>) {
    if word.ends_with(b"ied") {
        let stem: &[u8] = if word.len() == 4 { b"ie" } else { b"i" };
        return replace(word, 3, stem);
    }
    if word.ends_with(b"eed") {
        if measure(&word[..word.len() - 3]) > 0 {
            word.pop();
        }
        return;
    }
    let suffix_len = match word.as_slice() {
        [stem @ .., b'e', b'd'] if contains_vowel(stem) => 2,
        [stem @ .., b'i', b'n', b'g'] if contains_vowel(stem) => 3,
        _ => return,
    };
    word.truncate(word.len() - suffix_len);
    if word.ends_with(b"at") || word.ends_with(b"bl") || word.ends_with(b"iz") {
        word.push(b'e');
    } else if ends_double_consonant(word) {
        if !matches!(word.last(), Some(b'l' | b's' | b'z')) {
            word.pop();
        }
    } else if measure(word) == 1 && ends_cvc(word) {
        word.push(b'e');
    }
}

fn step1c(word: &mut [u8]) {
    if let [stem @ .., last @ b'y'] = word
        && stem.len() > 1
        && is_consonant(stem, stem.len() - 1)
    {
        *last = b'i';
    }
}

fn step2(word: &mut Vec<u8>) {
    // Each round takes two bytes off, so this ends.
    while word.ends_with(b"alli") && measure(&word[..word.len() - 4]) > 0 {
        replace(word, 4, b"al");
    }
    const RULES: [Rule; 22] = [
        (b"ational", b"ate"),
        (b"tional", b"tion"),
        (b"enci", b"ence"),
        (b"anci", b"ance"),
        (b"izer", b"ize"),
        (b"bli", b"ble"),
        (b"alli", b"al"),
        (b"entli", b"ent"),
        (b"eli", b"e"),
        (b"ousli", b"ous"),
        (b"ization", b"ize"),
        (b"ation", b"ate"),
        (b"ator", b"ate"),
        (b"alism", b"al"),
        (b"iveness", b"ive"),
        (b"fulness", b"ful"),
        (b"ousness", b"ous"),
        (b"aliti", b"al"),
        (b"iviti", b"ive"),
        (b"biliti", b"ble"),
        (b"fulli", b"ful"),
        (b"logi", b"log"),
    ];
    let whole = word.clone();
    apply(word, &RULES, |stem, suffix| {
        // The l of `logi` counts with the stem, so that geology goes the way of archaeology.
        measure(if suffix == b"logi" { &whole[..whole.len() - 3] } else { stem }) > 0
    });
}

fn step3(word: &mut Vec<u8>) {
    const RULES: [Rule; 7] = [
        (b"icate", b"ic"),
        (b"ative", b""),
        (b"alize", b"al"),
        (b"iciti", b"ic"),
        (b"ical", b"ic"),
        (b"ful", b""),
        (b"ness", b""),
    ];
    apply(word, &RULES, |stem, _| measure(stem) > 0);
}

fn step4(word: &mut Vec<u8>) {
    const RULES: [Rule; 19] = [
        (b"al", b""),
        (b"ance", b""),
        (b"ence", b""),
        (b"er", b""),
        (b"ic", b""),
        (b"able", b""),
        (b"ible", b""),
        (b"ant", b""),
        (b"ement", b""),
        (b"ment", b""),
        (b"ent", b""),
        (b"ion", b""),
        (b"ou", b""),
        (b"ism", b""),
        (b"ate", b""),
        (b"iti", b""),
        (b"ous", b""),
        (b"ive", b""),
        (b"ize", b""),
    ];
    apply(word, &RULES, |stem, suffix| {
        measure(stem) > 1 && (suffix != b"ion" || matches!(stem.last(), Some(b's' | b't')))
    });
}

fn step5a(word: &mut Vec<u8>) {
    if let [stem @ .., b'e'] = word.as_slice()
        && (measure(stem) > 1 || (measure(stem) == 1 && !ends_cvc(stem)))
    {
        word.pop();
    }
}

fn step5b(word: &mut Vec<u8>) {
    if word.ends_with(b"ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

fn is_vowel(letter: u8) -> bool {
    matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u')
}

/// Whether each letter is a consonant: anything but a vowel, and a `y` unless it follows a consonant.
fn consonants(word: &[u8]) -> impl Iterator<Item = bool> + '_ {
    word.iter().scan(false, |after_consonant, &letter| {
        *after_consonant = if letter == b'y' { !*after_consonant } else { !is_vowel(letter) };
        Some(*after_consonant)
    })
}

fn is_consonant(word: &[u8], at: usize) -> bool {
    // The run of y before decides; the letter before the run has a kind of its own.
    let run = word[..=at].iter().rev().take_while(|letter| **letter == b'y').count();
    let before = at.checked_sub(run).is_some_and(|at| !is_vowel(word[at]));
    before ^ (run % 2 == 1)
}

/// How many times a consonant follows a vowel: the m of `[C](VC){m}[V]`.
fn measure(stem: &[u8]) -> usize {
    let mut after_vowel = false;
    consonants(stem)
        .filter(|&consonant| {
            let edge = consonant && after_vowel;
            after_vowel = !consonant;
            edge
        })
        .count()
}

fn contains_vowel(stem: &[u8]) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., a, b] if a == b) && is_consonant(word, word.len() - 1)
}

/// Consonant, vowel, consonant other than w, x, y; or, of two letters, vowel and consonant.
fn ends_cvc(word: &[u8]) -> bool {
    let n = word.len();
    (n >= 3
        && is_consonant(word, n - 3)
        && !is_consonant(word, n - 2)
        && is_consonant(word, n - 1)
        && !matches!(word[n - 1], b'w' | b'x' | b'y'))
        || (n == 2 && !is_consonant(word, 0) && is_consonant(word, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected stems are NLTK 3.10's.
    #[test]
    fn each_extension_has_its_word() {
        for (word, expected) in [
            ("skies", "sky"),
            ("innings", "inning"),
            ("succeed", "succeed"),
            ("dies", "die"),
            ("flies", "fli"),
            ("died", "die"),
            ("spied", "spi"),
            ("enjoy", "enjoy"),
            ("happy", "happi"),
            ("by", "by"),
            ("radically", "radic"),
            ("conformably", "conform"),
            ("hopefully", "hope"),
            ("geology", "geolog"),
            ("theology", "theolog"),
            ("generalization", "gener"),
            ("controlling", "control"),
            ("feed", "feed"),
            ("agreed", "agre"),
            ("hissing", "hiss"),
            ("filing", "file"),
            ("a11ing", "a1"),
            ("yyyy", "yyyi"),
            ("00000", "00000"),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }

    #[test]
    fn a_long_run_of_y_costs_linear_time() {
        assert!(stem(&"y".repeat(200_000)).starts_with("yyy"));
    }
}
