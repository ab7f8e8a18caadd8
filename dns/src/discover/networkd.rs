//! What systemd-networkd leaves of its links and leases: lines of `KEY=VALUE`.

use super::belief::Heard;
use super::links::Links;
use super::server::{self, Named};
use super::{Domain, Provenance};

/// Reads a file of `/run/systemd/netif/links` or `/run/systemd/netif/leases`, whose name is the
/// link's index.
pub(super) fn parse(text: &str, link: u32, links: &Links) -> Heard {
    let mut servers: Vec<Named> = Vec::new();
    let mut domains: Vec<Domain> = Vec::new();
    let mut default_route = true;
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let words = value.trim_matches('"').split_ascii_whitespace();
        match key {
            "DNS" => {
                servers.extend(words.filter_map(|word| server::parse(word, Some(link), links)));
            }
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
        servers,
        domains,
        default_route,
    }
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
        }
    }
}
