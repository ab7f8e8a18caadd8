//! What systemd-networkd leaves of its links and leases: lines of `KEY=VALUE`.

use super::belief::Heard;
use super::links::Links;
use super::server::{self, Named};
use super::{Domain, Provenance};

/// Reads a file of `/run/systemd/netif/links` or `/run/systemd/netif/leases`, whose name is the
/// link's index.
pub(super) fn parse(text: &str, link: u32, links: &Links) -> Heard {
    let mut servers: Vec<&str> = Vec::new();
    let mut domains: Vec<Domain> = Vec::new();
    let mut default_route = true;
    let mut tls = false;
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let words = value.trim_matches('"').split_ascii_whitespace();
        match key {
            "DNS" => servers.extend(words),
            // `opportunistic` takes what it gets, which is no more than the clear.
            "DNS_OVER_TLS" => tls = value == "yes",
            "DOMAINS" | "DOMAINNAME" | "DOMAIN_SEARCH_LIST" => {
                domains.extend(words.filter_map(server::domain));
            }
            "ROUTE_DOMAINS" => {
                domains.extend(words.filter_map(|word| server::domain(&format!("~{word}"))))
            }
            "DNS_DEFAULT_ROUTE" => default_route = value != "no",
            _ => {}
        }
    }
    Heard {
        from: Provenance::NetworkdLease { link },
        link: Some(link),
        servers: servers.iter().filter_map(|word| named(word, tls, link, links)).collect(),
        domains,
        default_route,
    }
}

fn named(word: &str, tls: bool, link: u32, links: &Links) -> Option<Named> {
    if tls {
        return server::parse(&format!("dns+tls://{word}"), Some(link), links);
    }
    server::parse(word, Some(link), links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_leases() {
        let links = Links::open().unwrap();
        #[rustfmt::skip]
        let cases = [
            ("empty", "", "", "", true),
            ("a lease",
             "# This is private data. Do not parse.\nADDRESS=192.0.2.9\nROUTER=192.0.2.1\nDNS=192.0.2.53 192.0.2.54\nDOMAINNAME=corp.example\nLIFETIME=3600\n",
             "192.0.2.53:53 192.0.2.54:53", "corp.example", true),
            ("a link",
             "ADMIN_STATE=configured\nDNS=192.0.2.53#dns.example [fe80::1%3]:53 2001:db8::53\nNTP=\nDOMAINS=corp.example\nROUTE_DOMAINS=lab.example .\nDNS_DEFAULT_ROUTE=no\n",
             "192.0.2.53:53 [fe80::1%3]:53 [2001:db8::53]:53", "corp.example ~lab.example ~", false),
            ("over TLS alone", "DNS=192.0.2.53#dns.example 192.0.2.54:8853\nDNS_OVER_TLS=yes\n", "192.0.2.53:853 192.0.2.54:8853", "", true),
            ("over TLS where it is had", "DNS=192.0.2.53\nDNS_OVER_TLS=opportunistic\n", "192.0.2.53:53", "", true),
            ("link-local without its zone", "DNS=fe80::1\n", "[fe80::1%3]:53", "", true),
            ("what makes no sense", "DNS=a b\nDOMAINS=..\nDNS\n", "", "", true),
        ];
        for (name, text, servers, domains, default_route) in cases {
            let heard = parse(text, 3, &links);
            let shown: Vec<String> = heard.servers.iter().map(|s| s.address.to_string()).collect();
            assert_eq!(shown.join(" "), servers, "{name}");
            let shown: Vec<String> = heard
                .domains
                .iter()
                .map(|d| format!("{}{}", if d.route_only { "~" } else { "" }, d.name))
                .collect();
            assert_eq!(shown.join(" "), domains, "{name}");
            assert_eq!(heard.default_route, default_route, "{name}");
            let tls = heard.servers.iter().all(|server| server.tls) && !heard.servers.is_empty();
            assert_eq!(tls, name == "over TLS alone", "{name}");
        }
    }
}
