//! Which addresses are of the public network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not one of the public network; none: it is.
pub(super) fn not_public(address: IpAddr) -> Option<&'static str> {
    // Tests have no other address that leads somewhere.
    if cfg!(test) && address == IpAddr::from([127, 0, 0, 99]) {
        return None;
    }
    match address {
        IpAddr::V4(v4) => not_public_v4(v4),
        IpAddr::V6(v6) => not_public_v6(v6),
    }
}

fn not_public_v4(v4: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = v4.octets();
    Some(match (a, b, c) {
        (127, ..) => "this machine's own",
        (0, ..) => "of this network",
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => "of a private network",
        (169, 254, _) => "of this link (where clouds keep their metadata)",
        (100, 64..=127, _) => "of a provider's inner network",
        (192, 0, 0 | 2) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => "set aside by the standards",
        (192, 88, 99) => "of a relay",
        (224..=239, ..) => "of a group",
        (240.., ..) => "reserved",
        _ => return None,
    })
}

fn not_public_v6(v6: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = carried(v6) {
        return not_public_v4(inner);
    }
    let first = v6.segments()[0];
    let second = v6.segments()[1];
    Some(match (first, second) {
        _ if v6.is_loopback() => "this machine's own",
        _ if v6.is_unspecified() => "of this network",
        (0xfc00..=0xfdff, _) => "of a private network",
        (0xfe80..=0xfebf, _) => "of this link",
        (0xfec0..=0xfeff, _) => "of a site",
        (0xff00.., _) => "of a group",
        // Teredo and what the registry sets aside; ORCHID; documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff) | (0x0100, _) => "set aside by the standards",
        // Only this is given to anybody (RFC 4291, 2.4, and the registry since).
        (0x2000..=0x3fff, _) => return None,
        _ => "reserved",
    })
}

/// The IPv4 address that an IPv6 address leads to.
fn carried(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // Mapped, translated, and the compatible ones of old, which the loopback and unspecified addresses are not.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => Some(of(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(of(high, low)),
        // NAT64, the well-known prefix and the local one.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => Some(of(high, low)),
        // 6to4.
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_inside_is_not_public() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "::ffff:0:127.0.0.1",
            "4000::1",
        ] {
            assert!(not_public(inside.parse().unwrap()).is_some(), "{inside}");
        }
        for public in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert_eq!(not_public(public.parse().unwrap()), None, "{public}");
        }
    }
}
