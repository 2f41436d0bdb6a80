#!/bin/sh
# A Docker daemon in a workspace: sidestep run --bypass --bypass-nested -- docs/dockerd.sh [DOCKERD'S OPTIONS]
# docker(1) finds it there as it finds any other. The caller needs ids in /etc/subuid and /etc/subgid, or is root.
set -eu
PATH=$PATH:/usr/sbin:/sbin
# Docker writes in /run and /etc/docker, which are the host's root's: a /run of its own, with links to what is in the
# host's.
host=$(mktemp -d)
mount -n --rbind /run "$host"
mount -n -t tmpfs -o mode=0755 run /run
mkdir /run/.host
mount -n --move "$host" /run/.host
rmdir "$host"
cd /run
ln -s .host/* .
rm -f docker docker.sock docker.pid containerd xtables.lock
[ ! -d /etc/docker ] || mount -n -t tmpfs docker /etc/docker
# Cgroups and devices are the host's: a daemon that knows that does without.
exec dockerd --rootless --data-root "${DOCKER_DATA:-$HOME/.local/share/sidestep-docker}" "$@"
