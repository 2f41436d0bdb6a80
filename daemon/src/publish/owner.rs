//! Who has a port of the host: proc_net(5) gives the socket's inode, /proc/PID/fd whose it is. Of other users' processes
//! only root sees the descriptors.

use std::fs;
use std::path::Path;

use sidestep_forwarder::policy::Transport;

#[derive(Debug)]
pub struct Owner {
    pub pid: u32,
    pub name: String,
}

pub fn of(transport: Transport, port: u16) -> Option<Owner> {
    let tables = if transport == Transport::Udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let inodes: Vec<_> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|text| inodes(&text, transport, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find_map(|pid: u32| {
        let mut files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        files.find(|file| {
            fs::read_link(file.path()).is_ok_and(|target| inodes.iter().any(|i| target == Path::new(i)))
        })?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        // A process gives itself any name, and this one goes to a terminal.
        Some(Owner { pid, name: name.trim_end().escape_debug().to_string() })
    })
}

/// Inodes of the sockets that listen, or are bound, at the port: `sl local_address rem_address st ... inode`.
fn inodes(table: &str, transport: Transport, port: u16) -> Vec<u64> {
    let state = if transport == Transport::Udp { "07" } else { "0A" };
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local, 16).ok()? == port && fields.get(3) == Some(&state);
        is_it.then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_proc_net_tcp() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(inodes(table, Transport::Tcp, 8080), [4711]);
        assert!(inodes(table, Transport::Udp, 8080).is_empty());
    }

    #[test]
    fn this_test_has_a_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = of(Transport::Tcp, listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(owner.pid, std::process::id());
    }
}
