# sidestep: what a person types. `make help` lists it.

CARGO ?= cargo
PREFIX ?= /usr/local
# The binary the tests and figures run; demo, bench and soak measure the release build.
SIDESTEP := target/release/sidestep

# Debian packages: what it is built with, what it runs with, what the tests run inside it, whom it is compared with.
BUILD_PACKAGES := gcc libc6-dev libseccomp-dev pkg-config
RUN_PACKAGES := iproute2 uidmap
TEST_PACKAGES := bash bind9-dnsutils busybox-static chromium crun curl hey iperf3 iptables iputils-ping libevent-dev mawk mount \
	nftables nginx-light nodejs openjdk-17-jdk-headless passwd podman procps psmisc python3 redis-server redis-tools \
	rootlesskit strace tcpdump util-linux wireguard-go wireguard-tools
PEER_PACKAGES := passt slirp4netns
# What only the figures are measured with. bypass4netns comes from a newer Debian, by hand: docs/performance.md.
BENCH_PACKAGES := postgresql-15 runc wrk
PACKAGES := $(BUILD_PACKAGES) $(RUN_PACKAGES) $(TEST_PACKAGES) $(PEER_PACKAGES)

.PHONY: help deps build test demo bench soak fmt lint clippy deny install clean

# Man pages and completions of the binary $(1) to where programs look for them under $(2).
define share
install -d $(addprefix $(2)/,man/man1 bash-completion/completions zsh/site-functions fish/vendor_completions.d)
$(1) man $(2)/man/man1
$(1) completions bash > $(2)/bash-completion/completions/sidestep
$(1) completions zsh > $(2)/zsh/site-functions/_sidestep
$(1) completions fish > $(2)/fish/vendor_completions.d/sidestep.fish
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what is missing of the Debian packages (as root or by sudo)
	@.ci/deps $(PACKAGES)

build: ## the release binary
	$(CARGO) build --release --locked

test: deps ## every test, those in the lab included
	$(CARGO) test --workspace --locked

demo: deps build ## iperf3 on the host, through the TAP and with the bypass, in one table
	$(SIDESTEP) bench --demo

bench: deps build ## every figure of `sidestep bench` as for a promise, in an hour (ARGS="--only bulk --rounds 5 --report DIR")
	@.ci/deps $(BENCH_PACKAGES)
	$(SIDESTEP) bench --rounds 15 $(ARGS)

soak: deps build ## what is too long for CI, hours, reported in docs/soak.md (ONLY="attacks crash": those; ROUNDS=n: make test's n times)
	SIDESTEP_BIN=$(CURDIR)/$(SIDESTEP) ONLY="$(ONLY)" .ci/soak $(ROUNDS)

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## clippy and formatting, warnings denied
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

clippy: lint

deny: ## licences and advisories of the dependencies (needs cargo-deny and the network)
	$(CARGO) deny --locked check

install: build ## the binary, man pages and completions into PREFIX (default /usr/local); SLIRP4NETNS=1: under that name, too
	install -D -m 0755 $(SIDESTEP) $(DESTDIR)$(PREFIX)/bin/sidestep
	$(if $(SLIRP4NETNS),ln -sf sidestep $(DESTDIR)$(PREFIX)/bin/slirp4netns)
	$(call share,$(SIDESTEP),$(DESTDIR)$(PREFIX)/share)

clean: ## what cargo built
	$(CARGO) clean
