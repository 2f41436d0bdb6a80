//! UDP: what arrives of more datagrams than fit, in Gbit/s.

use anyhow::Result;

use crate::Arguments;
use crate::bulk::{DIRECTIONS, received, without_iperf3};
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::peers;
use crate::report::Report;
use crate::station::{Contender, Station};

/// As fast as the sender can, 1400 bytes each.
const FLOOD: &str = "--udp --bitrate 0 --length 1400";

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    if without_iperf3("datagrams", report) {
        return Ok(());
    }
    let ours = [Contender::Host, Contender::HostAgain, Contender::TAP];
    let stations = arguments.stations(&[&ours[..], &peers::installed(report)].concat())?;
    let server = arguments.iperf3_servers()[0];
    for (direction, flag) in DIRECTIONS {
        let figure = Figure {
            name: format!("UDP {direction}, 1400 bytes"),
            unit: "Gbit/s",
            comparison: Comparison::Rate,
            targets: vec![Target::of(Contender::TAP, Baseline::BetterPeer, 2.0)],
        };
        let one = |station: &Station| received(station, server, FLOOD, flag, arguments.duration);
        report.add(figure.measure(report, &stations, arguments.rounds, one)?);
    }
    Ok(())
}
