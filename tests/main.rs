//! Whole-program tests: the real binary on the real kernel, in a lab of namespaces of its own.
//!
//! `main` enters the lab's world while it has one thread, then runs the cases of the modules beside it. Most cases
//! run every way sidestep can be run: through the TAP and past it, called by root and by an ordinary user. The same
//! program run by an ordinary user makes an ordinary user's world and tests there.
//!
//! | variable       | meaning                                                    |
//! |----------------|------------------------------------------------------------|
//! | `SIDESTEP_BIN` | the binary under test, where it is not the one cargo built |
//! | `LAB_LOG`      | `--log-level` of every `sidestep run`                      |
//! | `LAB_SOAK`     | set: as often and as long as `make soak` tries things, and |
//! |                | Docker, too; a path: a line there about each such test     |

// A test fails by panicking, or by returning the error.
#![allow(clippy::unwrap_used, reason = "tests")]

mod attacks;
mod bench;
mod bridged;
mod capture;
mod cases;
mod configuration;
mod connect;
mod control;
mod costs;
mod crash;
mod datagrams;
mod differential;
mod doctor;
mod endurance;
mod engines;
mod epoll;
mod harness;
mod icmp;
mod image;
mod isolation;
mod lab;
mod listening;
mod names;
mod nested;
mod netfilter;
mod policy;
mod ports;
mod programs;
mod published;
mod routes;
mod run;
mod sandbox;
mod signals;
mod slirp4netns;
mod streams;
mod tcp;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::Arguments;

use lab::world;

fn main() -> anyhow::Result<ExitCode> {
    if let Some(code) = sandbox::attempt()? {
        return Ok(code);
    }
    let sidestep = std::env::var_os("SIDESTEP_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sidestep").into());
    if let Some(code) = world::enter(&PathBuf::from(sidestep))? {
        return Ok(code);
    }
    let arguments = Arguments::from_args();
    let modules = [
        harness::CASES,
        run::CASES,
        tcp::CASES,
        streams::CASES,
        connect::CASES,
        listening::CASES,
        names::CASES,
        configuration::CASES,
        datagrams::CASES,
        icmp::CASES,
        differential::CASES,
        epoll::CASES,
        programs::CASES,
        isolation::CASES,
        policy::CASES,
        ports::CASES,
        ports::datagrams::CASES,
        ports::lifetime::CASES,
        ports::loopback::CASES,
        published::CASES,
        published::auto::CASES,
        published::inside::CASES,
        published::lifetime::CASES,
        routes::CASES,
        netfilter::CASES,
        nested::CASES,
        bridged::CASES,
        signals::CASES,
        sandbox::CASES,
        slirp4netns::CASES,
        slirp4netns::api::CASES,
        slirp4netns::life::CASES,
        slirp4netns::traffic::CASES,
        crash::CASES,
        control::CASES,
        costs::CASES,
        doctor::CASES,
        image::CASES,
        capture::CASES,
        endurance::CASES,
        bench::CASES,
        engines::podman::CASES,
        engines::rootlesskit::CASES,
        attacks::CASES,
        attacks::races::CASES,
        attacks::doors::CASES,
        attacks::host_sockets::CASES,
        attacks::arguments::CASES,
        attacks::outside::CASES,
        attacks::stalls::CASES,
        attacks::fuzz::CASES,
    ];
    // No container of Docker's runs with one id.
    let soaked = (lab::effort::soaks() && !world::is_single_id()).then_some(engines::docker::CASES);
    let trials = modules.into_iter().chain(soaked).flatten().flat_map(cases::Case::trials).collect();
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}
