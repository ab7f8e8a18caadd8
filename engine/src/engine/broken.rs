//! Which flow to end when this program has failed inside.
//!
//! A driver says whom it is about to carry ([`Engine::carry`]). Where it can't know, because a
//! packet, a timer or a walk leads to a flow, the engine notes it. A driver that catches a panic
//! ends that flow alone ([`Input::Broken`]), and where that panics as well forgets it without a
//! word ([`Engine::forget`]).
//!
//! What moves the bytes of a flow (`with_app_data`, `with_room`, `settle`) notes nothing: one
//! note a packet is enough, and each costs some percent of it.

use crate::engine::{Engine, Input, Output};
use crate::flow::{First, FlowId, Held, State, Waiting};

impl Engine {
    /// The flow that was carried last: after a panic, the one to end. `None`: it was not a
    /// flow that failed.
    pub fn carried(&self) -> Option<FlowId> {
        self.carried
    }

    /// Says for whose sake the next call or system call is made; `None`: nobody's in
    /// particular.
    pub fn carry(&mut self, id: Option<FlowId>) {
        self.carried = id;
    }

    /// Removes a flow that cannot be ended: no packet, no report. What it holds outside is
    /// given back.
    pub fn forget(&mut self, id: FlowId) {
        self.free_port(id);
        let Some(flow) = self.table.remove(id) else { return };
        self.end_chain(&flow.opening);
        match flow.state {
            State::Stream(stream) => {
                let rings = stream.rings;
                drop(stream);
                self.outputs.push_back(Output::Reset(id));
                self.outputs.push_back(Output::Release(rings, u64::MAX));
            }
            State::Datagrams(mapping)
            | State::Held(Held { waiting: Waiting::Egress(Some(mapping)), .. }) => {
                self.leave_mapping(mapping);
            }
            State::Held(Held { first: First::Peeked(stream), .. }) => {
                let rings = stream.rings;
                drop(stream);
                self.outputs.push_back(Output::Close(id));
                self.outputs.push_back(Output::Release(rings, u64::MAX));
            }
            State::Held(_) | State::Echo { .. } => self.outputs.push_back(Output::Close(id)),
            State::Link(_) | State::Questions { .. } => {}
            State::Answered(_) => self.answered -= 1,
        }
    }
}

impl Input {
    /// The one flow it is about.
    pub(super) fn flow(&self) -> Option<FlowId> {
        match self {
            Self::Owner(id, _)
            | Self::Source(id, _)
            | Self::SourceChanged(id, _)
            | Self::Lent(id, _)
            | Self::Connected(id, ..)
            | Self::Joined(id, _)
            | Self::Bound(id, _)
            | Self::Failed(id, _)
            | Self::ProxyFailed(id, _)
            | Self::ProxyEnded(id, _)
            | Self::Unsupported(id)
            | Self::FarEnded(id)
            | Self::FarFailed(id, _)
            | Self::EchoFailed(id, _)
            | Self::Broken(id) => Some(*id),
            Self::DatagramFailed(..) | Self::Unsent(..) | Self::EvictIdle | Self::Shutdown => None,
        }
    }
}

impl Output {
    /// The one flow it is about.
    pub fn flow(&self) -> Option<FlowId> {
        match self {
            Self::Owner(id, ..)
            | Self::Source(id, ..)
            | Self::Rings(id)
            | Self::Connect(id, ..)
            | Self::ConnectVia(id, ..)
            | Self::Bind(id, ..)
            | Self::Associate(id, ..)
            | Self::OpenEcho(id, ..)
            | Self::Serve(id)
            | Self::ShutdownFar(id)
            | Self::Close(id)
            | Self::Reset(id) => Some(*id),
            Self::Unbind(_) | Self::Trim(_) | Self::Release(..) | Self::Report(_) => None,
        }
    }
}
