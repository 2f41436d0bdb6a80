//! What the host's network looks like from where we were started: default routes, MTU, resolver file.

use std::fs;

use sidestep_forwarder::network::{MAX_MTU, MIN_MTU};

use crate::sys::netdevice;

/// An Ethernet's MTU, where the host has no default route to ask.
const ETHERNET_MTU: u16 = 1500;

/// Device of the host's default IPv4 route, with the lowest metric.
pub fn default_device_v4() -> Option<String> {
    default_v4(&fs::read_to_string("/proc/net/route").ok()?)
}

/// Device of the host's default IPv6 route, with the lowest metric.
pub fn default_device_v6() -> Option<String> {
    default_v6(&fs::read_to_string("/proc/net/ipv6_route").ok()?)
}

/// MTU of the device of the default route, within what the TAP can have.
pub fn default_mtu() -> u16 {
    let device = default_device_v4().or_else(default_device_v6);
    device.and_then(|name| netdevice::mtu(&name).ok()).map_or(ETHERNET_MTU, within_bounds)
}

fn within_bounds(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(MAX_MTU).clamp(MIN_MTU, MAX_MTU)
}

/// /proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric Mask ..., numbers in hexadecimal but the metric.
fn default_v4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [device, "00000000", _, flags, _, _, metric, "00000000", ..] = fields[..] else { return None };
        usable(flags).then_some((metric.parse::<u32>().ok()?, device))
    });
    routes.min().map(|(_, device)| device.to_owned())
}

/// /proc/net/ipv6_route: destination prefix source prefix next-hop metric references use flags device, in hexadecimal.
fn default_v6(table: &str) -> Option<String> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [destination, "00", _, _, _, metric, _, _, flags, device] = fields[..] else { return None };
        let default = destination.bytes().all(|b| b == b'0') && device != "lo" && usable(flags);
        default.then_some((u32::from_str_radix(metric, 16).ok()?, device))
    });
    routes.min().map(|(_, device)| device.to_owned())
}

/// RTF_UP without RTF_REJECT.
fn usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x201 == 0x1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let wlan = "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n";
        let eth = "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        let reject = "*\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n";
        let subnet = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let cases = [
            (format!("{head}{wlan}{eth}{subnet}"), Some("eth0")),
            (format!("{head}{subnet}{wlan}"), Some("wlan0")),
            (format!("{head}{reject}{subnet}"), None),
            (head.to_owned(), None),
        ];
        for (table, want) in cases {
            assert_eq!(default_v4(&table).as_deref(), want, "{table}");
        }
    }

    #[test]
    fn the_default_ipv6_route() {
        let zero = "00000000000000000000000000000000";
        let default = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
        );
        let unreachable = format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n");
        let subnet = format!("20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 0 0 00000001     eth0\n");
        let cases =
            [(format!("{subnet}{default}{unreachable}"), Some("eth0")), (format!("{subnet}{unreachable}"), None)];
        for (table, want) in cases {
            assert_eq!(default_v6(&table).as_deref(), want, "{table}");
        }
    }

    #[test]
    fn mtu_stays_within_what_a_tap_can_have() {
        for (mtu, want) in [(1500, 1500), (65536, MAX_MTU), (576, MIN_MTU)] {
            assert_eq!(within_bounds(mtu), want);
        }
    }
}
