//! `resolve` statements, before they are one table.

use std::rc::Rc;

use smallvec::SmallVec;

use super::super::Form;
use super::super::diagnostic::{Site, SourceId};
use super::super::domains::Domains;
use super::super::rule::{Operator, Resolve, ResolveItem, Using};
use super::super::set::Members;
use super::Compiler;
use crate::ResolverId;

/// One statement.
#[derive(Debug)]
pub(in super::super) struct Resolving {
    pub(in super::super) site: Site,
    /// `FILE:LINE`.
    pub(in super::super) name: Box<str>,
    /// `*` is among the names.
    pub(in super::super) all: bool,
    pub(in super::super) domains: Domains,
    pub(in super::super) sets: Vec<Rc<Members>>,
    pub(in super::super) form: Form,
    pub(in super::super) resolvers: SmallVec<[ResolverId; 4]>,
    pub(in super::super) private: bool,
}

impl Compiler<'_> {
    pub(super) fn resolve(&mut self, source: SourceId, resolve: &Resolve) {
        let mut all = false;
        let mut domains = Domains::default();
        let mut sets = Vec::new();
        for item in &resolve.names {
            let site = Site { source, span: item.span };
            match &item.value {
                ResolveItem::All => all = true,
                ResolveItem::Domain(domain) => {
                    self.plain_domain(site, domain);
                    domains.push(domain.below, &domain.name, &self.hasher);
                }
                ResolveItem::Set(name) => {
                    let set = self.set("resolve", site, name);
                    sets.extend(set.map(|at| Rc::clone(&self.sets[at as usize].members)));
                }
            }
        }
        domains.normalise();
        let (form, resolvers) = match &resolve.using {
            Using::None => (Form::None, SmallVec::new()),
            Using::Resolvers { operator, names } => {
                let form = match operator {
                    None => Form::One,
                    Some(Operator::Else) => Form::Else,
                    Some(Operator::Or) => Form::Or,
                    Some(Operator::And) => Form::And,
                };
                let known = names.iter().filter_map(|name| {
                    self.resolver(Site { source, span: name.span }, &name.value)
                });
                (form, known.collect())
            }
        };
        self.resolves.push(Resolving {
            site: Site { source, span: resolve.line.span },
            name: format!("{}:{}", self.sources.name(source), resolve.line.number).into(),
            all,
            domains,
            sets,
            form,
            resolvers,
            private: resolve.private,
        });
    }
}
