//! The policy's `resolve` rules, as the resolver asks for them.

use std::sync::Arc;

use dns::ask::ResolverId;
use dns::split::{Form, Plan, Rule};
use engine::policy::{self, Policy};

/// A policy that answers which resolvers a name is asked of.
pub(super) struct ByPolicy(pub(super) Arc<Policy>);

impl Plan for ByPolicy {
    fn rule(&self, name: &str) -> Rule {
        let resolution = self.0.resolution(name);
        Rule {
            form: match resolution.form {
                policy::Form::One => Form::One,
                policy::Form::Else => Form::Else,
                policy::Form::Or => Form::Or,
                policy::Form::And => Form::And,
                policy::Form::None => Form::None,
            },
            resolvers: resolution.resolvers.iter().map(|id| ResolverId(id.number())).collect(),
            private: resolution.private,
            specific: resolution.specific,
        }
    }
}
