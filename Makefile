# sidestep: what a person types. `make help` lists it.

CARGO ?= cargo
PREFIX ?= /usr/local
# The binary the tests and figures run; demo, bench and soak measure the release build.
SIDESTEP := target/release/sidestep
# One file for every Linux of this processor; built with --target, so that what runs while it is built stays dynamic.
STATIC_TARGET := $(shell uname -m)-unknown-linux-gnu
STATIC := target/$(STATIC_TARGET)/dist/sidestep
DIST := sidestep-$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)-$(shell uname -m)-linux

# Debian packages: what it is built with, what it runs with, what the tests run inside it, whom it is compared with.
BUILD_PACKAGES := binutils gcc libc6-dev libseccomp-dev pkg-config
RUN_PACKAGES := iproute2 uidmap
TEST_PACKAGES := bash bind9-dnsutils busybox-static chromium crun curl hey iperf3 iptables iputils-ping libevent-dev mawk mount \
	nftables nginx-light nodejs openjdk-17-jdk-headless passwd podman procps psmisc python3 redis-server redis-tools \
	rootlesskit strace tcpdump util-linux wireguard-go wireguard-tools
PEER_PACKAGES := passt slirp4netns
# What only the figures are measured with. bypass4netns comes from a newer Debian, by hand: docs/performance.md.
BENCH_PACKAGES := postgresql-15 runc wrk
# What only the soak runs, 250 MB.
SOAK_PACKAGES := docker.io
PACKAGES := $(BUILD_PACKAGES) $(RUN_PACKAGES) $(TEST_PACKAGES) $(PEER_PACKAGES)

.PHONY: help build-deps deps can-build build test demo bench soak fmt lint clippy deny install static dist dist-test clean

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

build-deps: ## install what is missing of the Debian packages that building and running take (as root or by sudo)
	@.ci/deps $(BUILD_PACKAGES) $(RUN_PACKAGES)

deps: ## the same for all tests and peers, 1.4 GB on a bare system
	@.ci/deps $(PACKAGES)

# Said here, rather than by the linker after minutes of compiling.
can-build:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: https://rustup.rs has it (Rust 1.91 or newer)" >&2; exit 1; }
	@command -v cc >/dev/null && pkg-config --exists libseccomp || { echo "a C compiler, pkg-config or libseccomp with its \
	headers is missing: \`make build-deps\` installs them on Debian" >&2; exit 1; }

build: can-build ## the release binary
	$(CARGO) build --release --locked

test: deps ## every test, those in the lab included
	$(CARGO) test --workspace --locked

demo: build-deps build ## iperf3 on the host, through the TAP and with the bypass, in one table
	@.ci/deps iperf3
	$(SIDESTEP) bench --demo

bench: deps build ## the short form of every figure, then of the pieces; ROUNDS=15: as for a promise (ARGS="--only bulk --report DIR")
	@.ci/deps $(BENCH_PACKAGES)
	$(SIDESTEP) bench --rounds $(or $(ROUNDS),3) $(ARGS)
	$(if $(ARGS),,$(CARGO) bench --locked --package sidestep --bench hot -- --quick)

soak: deps build ## what is too long for CI, hours, reported in docs/soak.md (ONLY="attacks crash": those; ROUNDS=n: make test's n times)
	@.ci/deps $(SOAK_PACKAGES)
	SIDESTEP_BIN=$(CURDIR)/$(SIDESTEP) ONLY="$(ONLY)" .ci/soak $(ROUNDS)

fmt: ## format the code
	$(CARGO) fmt --all

lint: ## clippy and formatting, warnings denied
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

clippy: lint

deny: ## licences and advisories of the dependencies (needs cargo-deny and the network)
	$(CARGO) deny --locked check

# Builds nothing: it is called as root, who mostly has no cargo and should leave no files in target/.
install: ## what `make build` made, man pages and completions, into PREFIX (default /usr/local); SLIRP4NETNS=1: under that name, too
	@test -x $(SIDESTEP) || { echo "there is no $(SIDESTEP) yet: \`make build\` makes it" >&2; exit 1; }
	install -D -m 0755 $(SIDESTEP) $(DESTDIR)$(PREFIX)/bin/sidestep
	$(if $(SLIRP4NETNS),ln -sf sidestep $(DESTDIR)$(PREFIX)/bin/slirp4netns)
	$(call share,$(SIDESTEP),$(DESTDIR)$(PREFIX)/share)

# getaddrinfo(3), getpwnam(3) and their like would load modules of the very same C library; each leaves a .gnu.warning.
static: can-build
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" LIBSECCOMP_LINK_TYPE=static \
		LIBSECCOMP_LIB_PATH=$$(pkg-config --variable=libdir libseccomp) \
		$(CARGO) build --profile dist --locked --package sidestep --target $(STATIC_TARGET)
	! readelf --wide --dynamic --program-headers --sections $(STATIC) | grep -E 'NEEDED|INTERP|\.gnu\.warning\.get'

dist: static ## one static binary with man pages and completions, as a tar.gz in dist/
	rm -rf dist
	install -D -m 0755 $(STATIC) dist/$(DIST)/bin/sidestep
	install -m 0644 LICENSE README.md CHANGELOG.md dist/$(DIST)
	$(call share,$(STATIC),dist/$(DIST)/share)
	cd dist && tar --sort=name --owner=0 --group=0 --numeric-owner -czf $(DIST).tar.gz $(DIST) && \
		sha256sum $(DIST).tar.gz > $(DIST).tar.gz.sha256
	ls -l $(STATIC) dist/*.tar.gz*

dist-test: deps static ## that binary as the entrypoint of an image that holds nothing else
	SIDESTEP_BIN=$(CURDIR)/$(STATIC) $(CARGO) test --locked --package sidestep --test whole -- image

clean: ## what cargo and `make dist` built
	$(CARGO) clean
	rm -rf dist
