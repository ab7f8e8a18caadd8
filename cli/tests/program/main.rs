//! The program as it is typed: one file for a verb or a page, one binary for all of them.

mod docs_policy;
mod generated;
mod import;
mod policy_verbs;
mod sandbox;
