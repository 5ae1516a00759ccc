# vmha: build, test, try and install. Debian 12 with a Swift 6.2 (or newer) toolchain; root for demo, test and install.
SHELL := /bin/bash
.DEFAULT_GOAL := build

PREFIX  ?= /usr
DESTDIR ?=
SWIFT   ?= swift

BUILD_PACKAGES := gcc g++ libc6-dev pkg-config libfuse3-dev libvirt-dev libxml2-dev libssl-dev libsqlite3-dev \
  libcurl4-openssl-dev
# What the lab's two nodes and their guests need at run time.
LAB_PACKAGES := libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils fuse3 iproute2 nftables busybox-static \
  cpio e2fsprogs procps xz-utils acl attr jq openssl fio python3-minimal iputils-ping stress-ng etcd-server etcd-client \
  fence-agents

# Gluster is one of the peers of the benchmark, which goes on without it.
BENCH_PACKAGES := python3 qemu-system-common
BENCH_PEERS := glusterfs-server glusterfs-client

.PHONY: build release test unit lab-test demo ladder bench fuzz soak sim sim-mutants lint format install uninstall packages clean

packages:
	@missing=; for p in $(BUILD_PACKAGES) $(LAB_PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

build: packages
	$(SWIFT) build --build-tests

release: packages
	$(SWIFT) build -c release --product vmha
	$(SWIFT) build -c release --product vmhad
	$(SWIFT) build -c release --product vmha-replicad

# Everything: formatting, unit and transcript tests, and the lab with real guests and real power cuts.
test: packages lint
	tools/run-tests

unit: packages
	$(SWIFT) build --build-tests && $(SWIFT) test --skip-build --disable-xctest --skip LabTests

lab-test: packages
	$(SWIFT) build --build-tests && $(SWIFT) test --skip-build --disable-xctest --filter LabTests

# Two nodes and two guests on this machine; one loses its power. KEEP=1 leaves the lab up.
demo: release
	tools/demo

# Every fault under every arbiter, with release programs: writes docs/operating/ladder.md. An hour on an idle machine.
ladder: release
	tools/lab-ladder

# What a write costs, beside a local file, QEMU's mirror and Gluster; and resyncs. See docs/performance.md.
bench: BUILD_PACKAGES += $(BENCH_PACKAGES)
bench: release
	dpkg-query -W -f='$${Status}' glusterfs-server 2>/dev/null | grep -q 'ok installed' || \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(BENCH_PEERS) >/dev/null || true
	bench/run --json bench.json

# The readers of foreign bytes under libFuzzer, SECONDS for each of them.
FUZZ_SECONDS = $(or $(SECONDS),60)
fuzz: packages
	tools/fuzz --seconds $(FUZZ_SECONDS)

# Two nodes under full CPU load for MINUTES: nothing may be decided, lost or interrupted.
soak: release
	tools/soak --minutes $(or $(MINUTES),30)

# Simulated clusters: SEEDS=n of each arbiter, or SEED=n with all it decided; ARBITER=name for one. See docs/simulation.md.
sim: packages
	$(SWIFT) build -c release --product vmha-sim
	.build/release/vmha-sim --arbiter $(or $(ARBITER),all) $(if $(SEED),--seed $(SEED) --trace,--seeds $(or $(SEEDS),1000)) \
	  $(SIM_OPTIONS)

# Every rule broken once: does the simulation, or a unit test, notice? ONLY=05 or ONLY="05 12" or names: those only. See docs/mutants.md.
sim-mutants:
	tools/sim-mutants $(if $(ONLY),$(ONLY),--write)

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests
	tools/tidy
	tools/sim-mutants --check

format:
	$(SWIFT) format format --in-place --recursive --parallel Package.swift Sources Tests

# Where the programs to install are; SWIFT=true with it installs what was built elsewhere.
BIN ?= .build/release
COMPLETIONS := bash-completion/completions/vmha zsh/vendor-completions/_vmha fish/vendor_completions.d/vmha.fish
UNITS := vmhad.service vmha-replicad@.service

install: release
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(BIN)/vmha
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/sbin $(BIN)/vmhad $(BIN)/vmha-replicad
	install -d -m 755 $(DESTDIR)/lib/systemd/system
	for unit in $(UNITS); do \
	  sed 's|=/usr/sbin/|=$(PREFIX)/sbin/|' packaging/systemd/$$unit > $(DESTDIR)/lib/systemd/system/$$unit && \
	  chmod 644 $(DESTDIR)/lib/systemd/system/$$unit || exit 1; done
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 packaging/man/vmha.8
	for file in $(COMPLETIONS); do \
	  install -d -m 755 $(DESTDIR)$(PREFIX)/share/$${file%/*} && \
	  $(BIN)/vmha --generate-completion-script $${file%%[-/]*} > $(DESTDIR)$(PREFIX)/share/$$file && \
	  chmod 644 $(DESTDIR)$(PREFIX)/share/$$file || exit 1; done
	install -D -m 755 hooks/qemu $(DESTDIR)/etc/libvirt/hooks/qemu.d/vmha
	install -d -m 755 $(DESTDIR)/etc/vmha/modules $(DESTDIR)/etc/vmha/hooks
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/vmha/vm-modules/kvm vm-modules/kvm/*
	install -D -m 755 hooks/on-state-change.example $(DESTDIR)$(PREFIX)/share/vmha/on-state-change.example
	if [ -z "$(DESTDIR)" ]; then tools/after-install; fi

# Keeps /etc/vmha and /var/lib/vmha: the cluster, its keys and its journal are the operator's to delete.
uninstall:
	if [ -z "$(DESTDIR)" ]; then tools/before-uninstall; fi
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/vmha sbin/vmhad sbin/vmha-replicad share/man/man8/vmha.8) \
	  $(addprefix $(DESTDIR)$(PREFIX)/share/,$(COMPLETIONS)) $(addprefix $(DESTDIR)/lib/systemd/system/,$(UNITS)) \
	  $(DESTDIR)/etc/libvirt/hooks/qemu.d/vmha
	rm -rf $(DESTDIR)$(PREFIX)/share/vmha
	if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

clean:
	$(SWIFT) package clean
