//! What the dense model is asked to write where it writes its own calibration.

use rand_chacha::ChaCha8Rng;

use super::prose::{Prose, pick};
use super::stories::STORIES;

/// Chapters of a book.
pub(crate) const CHAPTERS: usize = 8;

/// Requests; `{a}` and `{b}` are two people of the book.
const BOOKS: &[&str] = &[
    "Write chapter {n} of a long novel. In this chapter {a} meets {b}. Describe people and places in detail, with dialogue.",
    "Write chapter {n} of an adventure story, in which {a} and {b} travel together. Tell everything that happens, in the past tense.",
    "Write part {n} of a history of the town of {town}. Tell what {a} and {b} had to do with it.",
    "Write part {n} of the memoirs of {a}, in the first person. This part is about {b}.",
    "Write a long letter from {a} to {b}. It is letter number {n} between the two.",
    "Write essay number {n} of a collection by {a}. It is about the work of a {job}, and mentions {b}.",
    "Write scene {n} of a play about {a} and {b}. Write what everybody says.",
    "Write lecture {n} on the trade of the {job}, as {a} gave it to an audience with {b} in it. Explain step by step.",
    "Write report {n} of the town council of {town}. {a} and {b} disagree about a plan. Give reasons, numbers and decisions.",
    "Write part {n} of a detective story. {a} questions {b} about {thing}.",
];

/// The request for a chapter of the book that `rng` decides, by the chapter's number among all.
pub(crate) fn request(mut rng: ChaCha8Rng, index: usize) -> String {
    let prose = Prose::new(STORIES, rng.clone());
    rng.set_stream(1);
    let form = pick(BOOKS, &mut rng);
    let cast = prose.cast();
    let number = index % CHAPTERS;
    let (a, b) = (&cast[number % cast.len()], &cast[(number + 1) % cast.len()]);
    let who = |person: &super::prose::Person| {
        format!("{}, the {} from {}", person.name, person.job, person.town)
    };
    form.replace("{n}", &(number + 1).to_string())
        .replace("{a}", &who(a))
        .replace("{b}", &who(b))
        .replace("{town}", cast[0].town)
        .replace("{job}", a.job)
        .replace("{thing}", b.thing)
}

#[cfg(test)]
mod tests {
    use super::super::seeded;
    use super::*;

    #[test]
    fn chapters_of_a_book_share_its_people() {
        let book = |number| seeded("test", "book", 0, 1, number);
        let requests: Vec<String> = (0..CHAPTERS).map(|at| request(book(0), at)).collect();
        assert_eq!(requests[0], request(book(0), CHAPTERS));
        for pair in requests.windows(2) {
            assert_ne!(pair[0], pair[1]);
            assert!(!pair[0].contains('{'), "{}", pair[0]);
        }
        assert_ne!(requests[0], request(book(1), 0));
    }
}
