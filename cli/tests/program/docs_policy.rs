//! What the documents say about policies is true: every example loads, and what is shown
//! as wrong does not.

use std::fs;
use std::path::{Path, PathBuf};

use engine::Resolvers;
use engine::policy::{Environment, Policy, ReadError, Source, format};

/// The users of any Linux host, and the lists of the examples.
struct Documented;

impl Environment for Documented {
    fn uid(&self, user: &str) -> Option<u32> {
        [("root", 0), ("alice", 1000), ("bob", 1001)]
            .into_iter()
            .find_map(|(name, uid)| (name == user).then_some(uid))
    }

    fn read(&self, _: &str, path: &str) -> Result<String, ReadError> {
        match path {
            "lists/ads.txt" => {
                Ok("203.0.113.0/24\n198.51.100.7 # a comment\nads.example\n".to_owned())
            }
            _ => fs::read_to_string(docs().join("examples").join(path))
                .map_err(|_| ReadError::Missing),
        }
    }

    fn resolvers(&self) -> Resolvers {
        Resolvers::default().configured(["corp"]).expect("few")
    }

    fn secret(&self) -> u128 {
        0
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("documents");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// Everything that is said about a policy, warnings too; `Err` where it is refused.
fn load(name: &str, text: &str) -> Result<Vec<String>, Vec<String>> {
    let source = Source { name: name.to_owned(), text: text.to_owned() };
    let said = |found: Vec<engine::policy::Diagnostic>| {
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    match Policy::load(&[source], &Documented) {
        Ok((_, warnings)) => Ok(said(warnings)),
        Err(found) => Err(said(found)),
    }
}

/// A block of a document: where it begins, what its fence says, its text.
struct Block {
    place: String,
    fence: String,
    text: String,
}

fn blocks(path: &Path) -> Vec<Block> {
    let document = fs::read_to_string(path).expect("a document");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in document.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(fence)) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let place = format!("{name}:{}", number + 1);
                open = Some(Block { place, fence: fence.trim().to_owned(), text: String::new() });
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{}: a block is not closed", path.display());
    blocks.into_iter().filter(|block| block.fence.split(' ').next() == Some("policy")).collect()
}

#[test]
fn blocks_of_the_documents() {
    let mut seen = 0;
    let readme = docs().join("../README.md");
    for path in files(&docs(), "md").into_iter().chain([readme]) {
        for Block { place, fence, text } in blocks(&path) {
            seen += 1;
            // A part of a policy is shown without its head and its default.
            let mut whole = text.clone();
            if !whole.contains("policy ") {
                whole = format!("policy 1\n{whole}");
            }
            if !whole.contains("default ") {
                whole.push_str("default block\n");
            }
            match (fence.as_str(), load(&place, &whole)) {
                ("policy", Ok(_)) | ("policy fails", Err(_)) => {}
                ("policy", Err(found)) => panic!("{place}: {found:#?}"),
                ("policy fails", Ok(_)) => panic!("{place}: loads"),
                (fence, _) => panic!("{place}: a fence of `{fence}`"),
            }
        }
    }
    assert!(seen >= 9, "{seen} blocks found");
}

#[test]
fn examples() {
    let examples = files(&docs().join("examples"), "policy");
    assert!(examples.len() >= 4, "{examples:?}");
    for path in examples {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("an example");
        assert_eq!(load(&name, &text), Ok(Vec::new()), "{name}");
        assert!(text.contains("\nexpect "), "{name}: an example tests itself");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{name}: wide lines");
        let source = Source { name: name.clone(), text: text.clone() };
        assert_eq!(format(&source), Ok(text), "{name}: not in canonical form");
    }
}

/// The codes of diagnostics are an interface: each stands in the document.
#[test]
fn codes_are_documented() {
    let source = docs().join("../engine/src/policy/diagnostic.rs");
    let source = fs::read_to_string(source).expect("the engine's source");
    let document = fs::read_to_string(docs().join("policy.md")).expect("a document");
    let codes = source.lines().filter_map(|line| {
        let (_, code) = line.trim().strip_prefix("pub const ")?.split_once(": &str = \"")?;
        code.strip_suffix("\";")
    });
    let codes: Vec<&str> = codes.collect();
    assert!(codes.len() > 20, "{codes:?}");
    for code in codes {
        assert!(document.contains(&format!("`{code}`")), "`{code}` is not documented");
    }
}
