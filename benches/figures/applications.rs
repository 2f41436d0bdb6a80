//! Programs that people measure databases and web servers with, on the remote's servers: the bypass beside the host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::Arguments;
use crate::figure::{Baseline, Comparison, Figure, Target};
use crate::lab::REMOTE_V4;
use crate::lab::command::{Program, Running};
use crate::lab::poll;
use crate::lab::workspace::Workspace;
use crate::lab::world::scratch;
use crate::machine::find;
use crate::redis;
use crate::report::Report;
use crate::station::{Contender, Station};

/// A server on the remote and what measures it from the workspace.
struct Application {
    name: &'static str,
    programs: &'static [&'static str],
    serve: fn(&Workspace) -> Result<Running>,
    per_second: fn(&Station) -> Result<f64>,
}

const APPLICATIONS: [Application; 3] = [
    Application {
        name: "redis-benchmark SET, 50 clients",
        programs: &redis::PROGRAMS,
        serve: redis::serve,
        per_second: |station| Ok(redis::benchmark(station, 50, REDIS_REQUESTS)?.per_second),
    },
    Application {
        name: "pgbench, select only",
        programs: &["initdb", "postgres", "pg_isready", "pgbench"],
        serve: serve_postgresql,
        per_second: pgbench,
    },
    Application { name: "wrk against nginx", programs: &["nginx", "wrk"], serve: serve_nginx, per_second: wrk },
];

/// About three seconds of the host's.
const REDIS_REQUESTS: u32 = 150_000;
const POSTGRESQL_PORT: u16 = 5432;
const NGINX_PORT: u16 = 8080;
const READY: Duration = Duration::from_secs(30);

pub fn measure(arguments: &Arguments, report: &Report) -> Result<()> {
    for application in APPLICATIONS {
        if let Some(missing) = application.programs.iter().find(|program| find(program).is_none()) {
            report.left_out(application.name, &format!("no {missing}"));
            continue;
        }
        let stations = arguments.stations(&[Contender::Host, Contender::HostAgain, Contender::Bypass])?;
        let serve = |station: &Station| (application.serve)(&station.workspace);
        let _servers = stations.iter().map(serve).collect::<Result<Vec<Running>>>()?;
        let figure = Figure {
            name: application.name.to_owned(),
            unit: "/s",
            comparison: Comparison::Rate,
            targets: vec![Target::of(Contender::Bypass, Baseline::Host, 0.95)],
        };
        report.add(figure.measure(report, &stations, arguments.rounds, application.per_second)?);
    }
    Ok(())
}

/// An empty cluster of the caller's own: PostgreSQL does not run as root.
fn serve_postgresql(workspace: &Workspace) -> Result<Running> {
    let script = format!(
        "set -e
data=$(mktemp -d)
{initdb} --no-sync --auth trust --username figures --pgdata $data >/dev/null
echo 'host all all 0.0.0.0/0 trust' >> $data/pg_hba.conf
exec {postgres} -D $data -F -k $data -h {REMOTE_V4} -p {POSTGRESQL_PORT}",
        initdb = path("initdb")?,
        postgres = path("postgres")?,
    );
    let server = workspace.outside(["sh", "-c", &script]).deadline(READY).start(&workspace.lab.remote)?;
    let pg_isready = format!("{} --host {REMOTE_V4} --port {POSTGRESQL_PORT}", path("pg_isready")?);
    poll("PostgreSQL is ready", READY, || Ok(workspace.lab.host.run(&pg_isready).is_ok().then_some(())))
        .with_context(|| server.stderr())?;
    workspace.lab.host.run(&format!("{} --initialize --quiet {PGBENCH_SERVER}", path("pgbench")?))?;
    Ok(server)
}

const PGBENCH_SERVER: &str = "--host 192.0.2.2 --port 5432 --username figures postgres";

fn pgbench(station: &Station) -> Result<f64> {
    let program = path("pgbench")?;
    let text =
        station.line(&format!("{program} --select-only --no-vacuum --client 4 --jobs 2 --time 1 {PGBENCH_SERVER}"))?;
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.with_context(|| format!("no rate in {text}"))
}

fn serve_nginx(workspace: &Workspace) -> Result<Running> {
    let configuration = scratch().join("nginx.conf");
    let text = NGINX.replace("LISTEN", &format!("{REMOTE_V4}:{NGINX_PORT}"));
    std::fs::write(&configuration, text.replace("SCRATCH", &scratch().display().to_string()))?;
    let server = Program::new(["nginx", "-c"]).arg(&configuration).start(&workspace.lab.remote)?;
    let curl = format!("curl -sS http://{REMOTE_V4}:{NGINX_PORT}/");
    poll("nginx answers", READY, || Ok(workspace.lab.host.run(&curl).is_ok().then_some(())))
        .with_context(|| server.stderr())?;
    Ok(server)
}

const NGINX: &str = "user root;
daemon off;
master_process off;
pid SCRATCH/nginx.pid;
error_log stderr error;
events { worker_connections 1000; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path SCRATCH/nginx-body;
    proxy_temp_path SCRATCH/nginx-proxy;
    fastcgi_temp_path SCRATCH/nginx-fastcgi;
    uwsgi_temp_path SCRATCH/nginx-uwsgi;
    scgi_temp_path SCRATCH/nginx-scgi;
    server {
        listen LISTEN;
        location / { return 200 hello; }
    }
}
";

fn wrk(station: &Station) -> Result<f64> {
    let text =
        station.line(&format!("wrk --threads 1 --connections 16 --duration 1s http://{REMOTE_V4}:{NGINX_PORT}/"))?;
    ensure!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    rate.with_context(|| format!("no rate in {text}"))
}

fn path(program: &str) -> Result<String> {
    Ok(find(program).with_context(|| format!("no {program}"))?.display().to_string())
}
