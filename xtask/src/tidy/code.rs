//! Just enough of Rust's grammar for the rules: comments apart from code, and what `use` trees name.

/// The text with comments blanked out, strings kept, lines kept.
pub(super) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let token = match rest {
            _ if rest.starts_with("//") => Token::Blank(rest.find('\n').unwrap_or(rest.len())),
            _ if rest.starts_with("/*") => Token::Blank(rest.find("*/").map_or(rest.len(), |end| end + 2)),
            _ if rest.starts_with("r\"") => {
                Token::Keep(rest.get(2..).and_then(|r| r.find('"')).map_or(2, |end| end + 3))
            }
            _ if rest.starts_with("r#\"") => Token::Keep(rest.find("\"#").map_or(3, |end| end + 2)),
            _ if rest.starts_with('"') => Token::Keep(string_end(rest)),
            _ if rest.starts_with("'\"'") => Token::Keep(3),
            _ => Token::Keep(rest.chars().next().map_or(1, char::len_utf8)),
        };
        let (length, blank) = match token {
            Token::Keep(length) => (length.min(rest.len()), false),
            Token::Blank(length) => (length.min(rest.len()), true),
        };
        let (piece, after) = rest.split_at(length);
        if blank {
            out.extend(piece.chars().filter(|c| *c == '\n'));
        } else {
            out.push_str(piece);
        }
        rest = after;
    }
    out
}

enum Token {
    Keep(usize),
    Blank(usize),
}

/// Bytes of the string literal that the text starts with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return index + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The code before the first test module: what runs in the product.
pub(super) fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]")
        .map_or(code, |start| code.split_at(start).0)
}

/// Lines (from 1) at which `ROOT::NAME` is named, on its own or in a `use ROOT::{...}` tree.
pub(super) fn lines_naming(code: &str, root: &str, name: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let prefix = format!("{root}::");
    for (start, _) in code.match_indices(&prefix) {
        if code.get(..start).is_some_and(ends_in_word) {
            continue;
        }
        let after = code.get(start + prefix.len()..).unwrap_or_default();
        let first_line = line_of(code, start);
        if let Some(tree) = after.strip_prefix('{') {
            lines.extend(
                top_level_names(tree)
                    .filter(|(_, named)| *named == name)
                    .map(|(offset, _)| {
                        first_line + tree.get(..offset).unwrap_or_default().matches('\n').count()
                    }),
            );
        } else if leading_word(after) == name {
            lines.push(first_line);
        }
    }
    lines
}

/// The first words of the parts of a `use` tree, with their offsets; the tree's `{` is already taken.
fn top_level_names(tree: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut depth = 1_usize;
    let mut starts = vec![0];
    for (index, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => starts.push(index + 1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    starts.into_iter().filter_map(move |start| {
        let part = tree.get(start..)?;
        let blank = part.len() - part.trim_start().len();
        Some((start + blank, leading_word(part.trim_start())))
    })
}

/// Lines (from 1) that name this identifier.
pub(super) fn lines_with_word(code: &str, is: impl Fn(&str) -> bool) -> Vec<usize> {
    code.lines()
        .enumerate()
        .filter(|(_, line)| line.split(|c: char| !is_word(c)).any(&is))
        .map(|(index, _)| index + 1)
        .collect()
}

fn line_of(code: &str, offset: usize) -> usize {
    code.get(..offset).unwrap_or_default().matches('\n').count() + 1
}

fn leading_word(text: &str) -> &str {
    text.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_strings_and_lines_stay() {
        let code = without_comments("a // b\n/* c\nd */ e \"// f\" '\"' // g\nr\"/* h\" \"\\\" // i\"");
        assert_eq!(code, "a \n\n e \"// f\" '\"' \nr\"/* h\" \"\\\" // i\"");
    }

    #[test]
    fn names_are_found_alone_and_in_trees() {
        let code =
            "use std::fs;\nuse std::{\n    io,\n    fs::{self, File},\n};\nuse my_std::fs;\nstd::net::x()";
        assert_eq!(lines_naming(code, "std", "fs"), [1, 4]);
        assert_eq!(lines_naming(code, "std", "net"), [7]);
        assert_eq!(lines_naming(code, "std", "File"), [] as [usize; 0]);
    }

    #[test]
    fn words_are_whole_words() {
        let is = |word: &str| word == "aya" || word.starts_with("aya_");
        assert_eq!(lines_with_word("aya::x\nmaya\naya_obj\nplayaya", is), [1, 3]);
    }
}
