//! Whose socket a local flow belongs to, asked of the kernel.
//!
//! # Theory of operation
//!
//! `sock_diag` finds one socket by its addresses and ports in about 1 µs, in the network
//! namespace that the diagnostic socket was opened in, and tells its uid, inode and cgroup.
//! A TCP socket is found from the moment its SYN was sent, which is when the question comes
//! up. UDP must be asked with both ends exchanged: the kernel looks for the socket that a
//! datagram *from* the first *to* the second address would reach, which also finds sockets
//! that were never connected. An IPv4 question finds IPv6 sockets that speak IPv4.
//!
//! What the kernel finds is not always whose packet it was, so an answer counts only where
//! it has an inode. A socket without one is in TIME-WAIT or half-closed without a process, and
//! reports uid 0: root's rules are not for it. A listener is what is found where the connection
//! is gone already. Of UDP sockets that share a port (`SO_REUSEPORT`, or one bound to an address
//! and one to all) one is found, perhaps another one's.
//!
//! **uid.** The kernel tells it in the user namespace of whoever opened the diagnostic socket,
//! and as the overflow uid (65534, `nobody`) where it has no number there. It is passed on as
//! it is: a rule for `nobody` then also means "somebody unknown to this namespace", while in
//! the host's own namespace every uid has its number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use engine::{Owner, Protocol};
use netlink_packet_core::NlasIterator;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use tracing::warn;

use crate::netlink::{Requests, Unanswered};
use crate::source::LookupError;

mod cgroup;
mod listener;

use cgroup::Cgroups;
use listener::{Family, Kinship};

/// The sockets of one network namespace.
#[derive(Debug)]
pub struct Owners {
    requests: Requests,
    /// The device that the flows' packets go to, in that namespace; 0: unknown.
    device: u32,
    cgroups: Cgroups,
    watched: Vec<Watched>,
}

/// A proxy of this host.
#[derive(Debug)]
struct Watched {
    name: Arc<str>,
    address: SocketAddr,
    family: Family,
    /// That nobody is seen who listens there was said.
    told: bool,
}

/// What the kernel tells of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerAnswer {
    /// Its user, as the module says.
    pub uid: u32,
    /// Its inode, by which a process that has it open is found.
    pub inode: u32,
    /// The id of its cgroup (version 2), which is the inode of the cgroup's directory.
    pub cgroup_id: Option<u64>,
}

/// Opens a diagnostic socket in this thread's network namespace; [`Owners`] may use it from
/// any other.
pub fn open_diagnostics() -> Result<OwnedFd, LookupError> {
    socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )
    .map_err(LookupError::Socket)
}

impl Owners {
    /// Takes over a socket from [`open_diagnostics`].
    pub fn new(socket: OwnedFd) -> Result<Self, LookupError> {
        Ok(Self {
            requests: Requests::new(socket).map_err(LookupError::Socket)?,
            device: 0,
            cgroups: Cgroups::default(),
            watched: Vec::new(),
        })
    }

    /// From now on sockets of those who listen at these addresses are known as proxies', by
    /// which names.
    pub fn watch(&mut self, listeners: Vec<(Arc<str>, SocketAddr)>) {
        let mut before = std::mem::take(&mut self.watched);
        self.watched.extend(listeners.into_iter().map(|(name, address)| {
            let at = before.iter().position(|it| it.name == name && it.address == address);
            at.map(|at| before.swap_remove(at)).unwrap_or_else(|| Watched {
                name,
                address,
                family: Family::default(),
                told: false,
            })
        }));
    }

    /// Names the device (its index in the apps' namespace) that flows come from. Without it,
    /// sockets bound to that device are not found.
    pub fn through(mut self, device: u32) -> Self {
        self.device = device;
        self
    }

    /// Who owns the app's socket of a flow. Blocks for about 1 µs, and for a walk of the
    /// cgroup tree, at most once a second, where the cgroup is a new one.
    pub fn lookup(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Option<Owner> {
        let answer = self.find(protocol, client, destination).ok().flatten()?;
        Some(Owner {
            uid: answer.uid,
            cgroup: answer.cgroup_id.and_then(|id| self.cgroups.path(id)),
            of_proxy: self.is_of_proxy(&answer),
        })
    }

    /// Whether a socket is of those who listen at a watched address.
    fn is_of_proxy(&mut self, socket: &OwnerAnswer) -> bool {
        let mut watched = std::mem::take(&mut self.watched);
        let found = watched.iter_mut().any(|proxy| {
            let Ok(Some(listener)) = self.listener(proxy.address) else { return false };
            let kinship = proxy.family.kinship(&listener, socket);
            if kinship == Kinship::Unknown && !std::mem::replace(&mut proxy.told, true) {
                warn!(
                    code = "proxy-unseen",
                    name = %proxy.name,
                    "no process is seen that listens at the proxy's address: what it connects to \
                     is routed like all else"
                );
            }
            kinship == Kinship::Own
        });
        self.watched = watched;
        found
    }

    /// The socket that takes connections to an address.
    fn listener(&mut self, address: SocketAddr) -> Result<Option<OwnerAnswer>, LookupError> {
        let anybody: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.ask(libc::IPPROTO_TCP, address, SocketAddr::new(anybody, 0), 0, |answer| {
            parse(answer, address.port(), true)
        })
    }

    /// The socket itself; `None` where there is none, or none with an owner. Echo sockets
    /// cannot be asked for.
    pub fn find(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Option<OwnerAnswer>, LookupError> {
        let (number, source, target) = match protocol {
            Protocol::Tcp => (libc::IPPROTO_TCP, client, destination),
            Protocol::Udp => (libc::IPPROTO_UDP, destination, client),
            Protocol::Icmp => return Ok(None),
        };
        let device = self.device;
        self.ask(number, source, target, device, |answer| parse(answer, client.port(), false))
    }

    fn ask(
        &mut self,
        number: i32,
        source: SocketAddr,
        target: SocketAddr,
        device: u32,
        parse: impl FnOnce(&[u8]) -> Option<OwnerAnswer>,
    ) -> Result<Option<OwnerAnswer>, LookupError> {
        let family = match source.ip() {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let request = InetRequest {
            family: family as u8,
            protocol: number as u8,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: source.port(),
                destination_port: target.port(),
                source_address: source.ip(),
                destination_address: target.ip(),
                interface_id: device,
                cookie: [0xff; 8],
            },
        };
        match self.requests.ask(BY_FAMILY, &request, BY_FAMILY) {
            Ok(answer) => Ok(parse(answer)),
            Err(Unanswered::Refused(Errno::NOENT)) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }
}

/// Reads a `struct inet_diag_msg` and the cgroup behind it. `None`: not a socket that sends
/// from `port`, or listens there, and has an owner.
fn parse(answer: &[u8], port: u16, listens: bool) -> Option<OwnerAnswer> {
    let (message, attributes) = answer.split_at_checked(MESSAGE)?;
    let number = |at: usize| {
        let bytes = message.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let (uid, inode) = (number(64)?, number(68)?);
    if inode == 0 || (message[1] == LISTEN) != listens || message[4..6] != port.to_be_bytes() {
        return None;
    }
    let cgroup_id = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == CGROUP_ID)
        .and_then(|attribute| attribute.value().first_chunk().copied())
        .map(u64::from_ne_bytes);
    Some(OwnerAnswer { uid, inode, cgroup_id })
}

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;
/// `TCP_LISTEN`
const LISTEN: u8 = 10;
/// `INET_DIAG_CGROUP_ID`
const CGROUP_ID: u16 = 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace;
    use socket2::{Domain, SockAddr, Socket, Type};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;

    fn owners() -> Owners {
        Owners::new(open_diagnostics().unwrap()).unwrap()
    }

    fn inode(socket: &impl AsRawFd) -> u32 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        text["socket:[".len()..text.len() - 1].parse().unwrap()
    }

    fn me() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn finds_tcp_and_udp() {
        let mut owners = owners();
        for address in ["127.0.0.1", "::1"] {
            let listener = TcpListener::bind((address, 0)).unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let connected = UdpSocket::bind((address, 0)).unwrap();
            connected.connect(listener.local_addr().unwrap()).unwrap();
            let (client, far) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            #[rustfmt::skip]
            let cases = [
                ("tcp", Protocol::Tcp, client, inode(&stream)),
                ("udp", Protocol::Udp, connected.local_addr().unwrap(), inode(&connected)),
            ];
            for (name, protocol, client, inode) in cases {
                let answer = owners.find(protocol, client, far).unwrap();
                let answer = answer.unwrap_or_else(|| panic!("{name} of {address}: not found"));
                assert_eq!((answer.uid, answer.inode), (me(), inode), "{name} of {address}");
            }
            assert_eq!(owners.find(Protocol::Icmp, client, far).unwrap(), None);
        }
    }

    #[test]
    fn finds_udp_that_was_never_connected_and_ipv4_of_ipv6_sockets() {
        let mut owners = owners();
        let far: SocketAddr = "192.0.2.1:53".parse().unwrap();
        let bound = UdpSocket::bind("0.0.0.0:0").unwrap();
        let dual = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        dual.set_only_v6(false).unwrap();
        let any: SocketAddr = "[::]:0".parse().unwrap();
        dual.bind(&any.into()).unwrap();
        let dual_port = dual.local_addr().unwrap().as_socket().unwrap().port();
        #[rustfmt::skip]
        let cases = [
            (bound.local_addr().unwrap().port(), inode(&bound)),
            (dual_port, inode(&dual)),
        ];
        for (port, inode) in cases {
            let client = SocketAddr::new([127, 0, 0, 1].into(), port);
            let answer = owners.find(Protocol::Udp, client, far).unwrap().unwrap();
            assert_eq!(answer.inode, inode);
        }

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        stream.set_only_v6(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
        stream.connect(&SockAddr::from(mapped)).unwrap();
        let port = stream.local_addr().unwrap().as_socket().unwrap().port();
        let client = SocketAddr::new([127, 0, 0, 1].into(), port);
        let far = listener.local_addr().unwrap();
        let answer = owners.find(Protocol::Tcp, client, far).unwrap().unwrap();
        assert_eq!(answer.inode, inode(&stream));
    }

    #[test]
    fn a_socket_without_an_owner_is_not_root() {
        namespace::alone(|| {
            let mut owners = owners();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let far = listener.local_addr().unwrap();
            let stream = TcpStream::connect(far).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let client = stream.local_addr().unwrap();
            // FIN-WAIT without a process first, TIME-WAIT after the far side has closed too.
            drop(stream);
            assert_eq!(owners.find(Protocol::Tcp, client, far).unwrap(), None);
            drop(accepted);
            assert_eq!(owners.find(Protocol::Tcp, client, far).unwrap(), None);

            // Nothing connected, but a listener where the client would be.
            let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
            assert_eq!(owners.find(Protocol::Tcp, far, nobody).unwrap(), None);
            assert_eq!(owners.find(Protocol::Udp, far, nobody).unwrap(), None);
        });
    }

    const SETUP: &str = "
        ip link set lo up
        ip link add t0 type veth peer name far0
        ip link set far0 up
        ip link set t0 up
        ip addr add 192.0.2.1/24 dev t0
        ip neigh add 192.0.2.9 dev t0 lladdr 02:00:00:00:00:09
    ";

    #[test]
    fn finds_a_connect_that_waits_and_sockets_bound_to_the_device() {
        namespace::within(SETUP, || {
            let far: SocketAddr = "192.0.2.9:443".parse().unwrap();
            let waiting = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            let _in_progress = waiting.connect(&far.into());
            let bound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            bound.bind_device(Some(b"t0")).unwrap();
            bound.connect(&far.into()).unwrap();
            let device = rustix::net::netdevice::name_to_index(&bound, "t0").unwrap();
            let mut owners = owners().through(device);
            for (protocol, socket) in [(Protocol::Tcp, waiting), (Protocol::Udp, bound)] {
                let client = socket.local_addr().unwrap().as_socket().unwrap();
                let answer = owners.find(protocol, client, far).unwrap().expect("the socket");
                assert_eq!((answer.uid, answer.inode), (0, inode(&socket)), "{protocol}");
                assert_eq!(owners.lookup(protocol, client, far).map(|owner| owner.uid), Some(0));
            }
        });
    }

    #[test]
    fn the_cgroup_is_this_process_s() {
        let Ok(text) = std::fs::read_to_string("/proc/self/cgroup") else {
            return;
        };
        let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
            return eprintln!("skipped: no cgroup version 2 here");
        };
        let mut owners = owners();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far: SocketAddr = "192.0.2.1:53".parse().unwrap();
        let owner =
            owners.lookup(Protocol::Udp, socket.local_addr().unwrap(), far).expect("the socket");
        if let Some(cgroup) = owner.cgroup {
            assert_eq!(&*cgroup, path);
        } else {
            eprintln!("skipped: the cgroup tree is not mounted here");
        }
    }

    #[test]
    fn parse_table() {
        let mut socket = vec![0; MESSAGE];
        socket[1] = 1;
        socket[4..6].copy_from_slice(&5000_u16.to_be_bytes());
        socket[64..68].copy_from_slice(&1000_u32.to_ne_bytes());
        socket[68..72].copy_from_slice(&77_u32.to_ne_bytes());
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = socket.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            changed
        };
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(value);
            bytes
        };
        let answer = |cgroup_id| Some(OwnerAnswer { uid: 1000, inode: 77, cgroup_id });
        let cgroup = attribute(CGROUP_ID, &9_u64.to_ne_bytes());
        #[rustfmt::skip]
        let cases = [
            ("plain", socket.clone(), answer(None)),
            ("with a cgroup", [&socket[..], &cgroup].concat(), answer(Some(9))),
            ("behind another attribute", [&socket[..], &attribute(8, &[0; 4]), &cgroup].concat(), answer(Some(9))),
            ("a short cgroup", [&socket[..], &attribute(CGROUP_ID, &[0; 4])].concat(), answer(None)),
            ("an attribute that lies", [&socket[..], &[0xff; 8]].concat(), answer(None)),
            ("no inode", with(68, &[0; 4]), None),
            ("a listener", with(1, &[LISTEN]), None),
            ("another port", with(4, &[1, 1]), None),
            ("cut off", socket[..MESSAGE - 1].to_vec(), None),
            ("empty", vec![], None),
        ];
        for (name, bytes, expected) in cases {
            assert_eq!(parse(&bytes, 5000, false), expected, "{name}");
        }
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_lookup() {
        let mut owners = owners();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = listener.local_addr().unwrap();
        let stream = TcpStream::connect(far).unwrap();
        let bound = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = bound.local_addr().unwrap().port();
        for (protocol, client) in [
            (Protocol::Tcp, stream.local_addr().unwrap()),
            (Protocol::Udp, SocketAddr::new([127, 0, 0, 1].into(), port)),
        ] {
            let start = std::time::Instant::now();
            for _ in 0..100_000 {
                owners.lookup(protocol, client, far).expect("an owner");
            }
            println!("{protocol}: {:?} a lookup", start.elapsed() / 100_000);
        }
        let start = std::time::Instant::now();
        let cgroups = owners.cgroups.walk_now();
        println!("walk of {cgroups} cgroups: {:?}", start.elapsed());
    }
}
