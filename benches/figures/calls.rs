//! What the filter costs the system calls that it lets pass: nanoseconds of one call, beside the same on the host.
//!
//! A run is the median of many short batches, so that being scheduled away in some of them does not show.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::Arguments;
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::report::Report;
use crate::station::Contender;
use crate::statistics::median;

const BATCHES: usize = 200;
/// Calls a batch: as many descriptors are open at once, which has to stay under the usual limit of 1024.
const BATCH: usize = 500;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Call {
    /// Of a duplicate of /dev/zero.
    Close,
    /// One byte of /dev/zero.
    Read,
    /// TCP_NODELAY of a connected socket.
    Setsockopt,
}

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    let stations = arguments.stations(&Contender::OURS)?;
    for (call, word) in [(Call::Close, "close"), (Call::Read, "read"), (Call::Setsockopt, "setsockopt")] {
        let figure = Figure {
            name: format!("{word}()"),
            unit: "ns",
            comparison: Comparison::Difference,
            targets: vec![Target::of(Contender::Bypass, Baseline::Host, 100.0)],
        };
        debug_assert!(call.to_possible_value().is_some_and(|value| value.matches(word, false)));
        report.add(figure.measure(report, &stations, arguments.rounds, |station| station.figure(&["calls", word]))?);
    }
    Ok(())
}

impl Call {
    /// Of one call, here and now.
    pub fn nanoseconds(self) -> Result<f64> {
        let batches: Result<Vec<f64>> = match self {
            Self::Close => {
                let zero = File::open("/dev/zero")?;
                (0..BATCHES).map(|_| closes(&zero)).collect()
            }
            Self::Read => {
                let zero = File::open("/dev/zero")?;
                let mut byte = [0];
                repeat(|| Ok(rustix::io::read(&zero, &mut byte).map(drop)?))
            }
            Self::Setsockopt => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let stream = TcpStream::connect(listener.local_addr()?)?;
                repeat(|| Ok(stream.set_nodelay(true)?))
            }
        };
        Ok(median(&batches?))
    }
}

fn closes(file: &File) -> Result<f64> {
    let duplicates = (0..BATCH).map(|_| file.try_clone()).collect::<std::io::Result<Vec<File>>>()?;
    let begun = Instant::now();
    drop(duplicates);
    Ok(each(begun))
}

fn repeat(mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut batch = || {
        let begun = Instant::now();
        for _ in 0..BATCH {
            call()?;
        }
        Ok(each(begun))
    };
    (0..BATCHES).map(|_| batch()).collect()
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds of a moment")]
fn each(begun: Instant) -> f64 {
    begun.elapsed().as_nanos() as f64 / BATCH as f64
}
