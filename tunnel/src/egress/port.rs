//! The sink: packets to the device, datagrams to the sockets.

use engine::{Arrived, Datagram, Failure, LinkId, LinkPort, Meta, Sink, Unsent, Way};

use crate::device::{Device, MAX_PACKET, TxOffload};
use crate::driver::lanes::Away;
use crate::egress::Sockets;

/// The device and the one buffer that packets for it are written in.
#[derive(Debug)]
pub(crate) struct Port<D> {
    pub(crate) device: D,
    buffer: Box<[u8]>,
    pub(crate) device_errors: u64,
}

impl<D: Device> Port<D> {
    pub(crate) fn new(device: D) -> Self {
        Self { device, buffer: vec![0; MAX_PACKET].into_boxed_slice(), device_errors: 0 }
    }
}

impl<D: Device> Port<D> {
    /// Writes a packet that came out of a tunnel, from where it lies.
    pub(crate) fn deliver(&mut self, headers: &[u8], payload: &[&[u8]], meta: Meta) {
        let offload = TxOffload { gso_size: meta.segment, checksum_partial: meta.partial_checksum };
        if self.device.write_parts(headers, payload, offload).is_err() {
            self.device_errors += 1;
        }
    }
}

impl<D: Device> Sink for Sockets<D> {
    fn to_app(&mut self, max: usize, meta: Meta, write: impl FnOnce(&mut [u8]) -> usize) {
        let port = &mut self.port;
        let length = write(&mut port.buffer[..max]);
        let offload = TxOffload { gso_size: meta.segment, checksum_partial: meta.partial_checksum };
        if port.device.write(&port.buffer[..length], offload).is_err() {
            port.device_errors += 1;
        }
    }

    fn to_far(&mut self, way: Way, datagram: Datagram<'_>) -> Result<(), Unsent> {
        match (way, &mut self.queries) {
            (Way::Service(id), Some(queries)) => queries.push(id, datagram),
            (Way::Service(_), None) => Err(Unsent::Failed(Failure::Refused)),
            (Way::Mapping(..) | Way::Echo(..), _) => self.send(way, datagram),
        }
    }

    fn to_link(
        &mut self,
        link: LinkId,
        headers: &[u8],
        payload: &[u8],
        meta: Meta,
    ) -> Result<(), Unsent> {
        match &mut self.away {
            Away::Alone | Away::ToFlows(_) => self.links.send(link, headers, payload, meta),
            Away::ToTunnels(lane) => lane.put(link, headers, [payload], meta),
        }
    }

    fn to_shard(
        &mut self,
        shard: usize,
        link: LinkId,
        headers: &[u8],
        payload: &[&[u8]],
        meta: Meta,
    ) {
        if let Away::ToFlows(lanes) = &mut self.away
            && let Some(lane) = shard.checked_sub(1).and_then(|at| lanes.get_mut(at))
        {
            // One that finds no room is lost, as on any network.
            let _ = lane.put(link, headers, payload.iter().copied(), meta);
        }
    }

    fn to_netstack(&mut self, port: LinkPort, arrived: Arrived) {
        self.netstack.arrive(port, arrived);
    }
}
