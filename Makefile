# vmha: build, test, try and install. Debian 12 with a Swift 6.2 (or newer) toolchain; root for demo, test and install.
SHELL := /bin/bash
.DEFAULT_GOAL := build

PREFIX  ?= /usr
DESTDIR ?=
SWIFT   ?= swift

BUILD_PACKAGES := gcc g++ libc6-dev pkg-config libfuse3-dev libvirt-dev libxml2-dev libssl-dev libsqlite3-dev
# What the lab's two nodes and their guests need at run time.
LAB_PACKAGES := libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils fuse3 iproute2 nftables busybox-static \
  cpio e2fsprogs procps xz-utils acl attr jq openssl fio python3-minimal iputils-ping

# Gluster is one of the peers of the benchmark, which goes on without it.
BENCH_PACKAGES := python3 qemu-system-common
BENCH_PEERS := glusterfs-server glusterfs-client

.PHONY: build release test unit lab-test demo bench lint format install uninstall packages clean

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

# What a write costs, beside a local file, QEMU's mirror and Gluster; and resyncs. See docs/performance.md.
bench: BUILD_PACKAGES += $(BENCH_PACKAGES)
bench: release
	dpkg-query -W -f='$${Status}' glusterfs-server 2>/dev/null | grep -q 'ok installed' || \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(BENCH_PEERS) >/dev/null || true
	bench/run --json bench.json

lint:
	$(SWIFT) format lint --strict --recursive --parallel Package.swift Sources Tests
	tools/tidy

format:
	$(SWIFT) format format --in-place --recursive --parallel Package.swift Sources Tests

install: release
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin .build/release/vmha
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/sbin .build/release/vmhad .build/release/vmha-replicad
	install -D -m 644 -t $(DESTDIR)/lib/systemd/system packaging/systemd/vmhad.service packaging/systemd/vmha-replicad@.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 packaging/man/vmha.8
	install -D -m 755 hooks/qemu $(DESTDIR)/etc/libvirt/hooks/qemu.d/vmha
	install -d -m 755 $(DESTDIR)/etc/vmha/modules $(DESTDIR)/etc/vmha/hooks
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/vmha/vm-modules/kvm vm-modules/kvm/*
	install -D -m 755 hooks/on-state-change.example $(DESTDIR)$(PREFIX)/share/vmha/on-state-change.example
	if [ -z "$(DESTDIR)" ]; then tools/after-install; fi

uninstall:
	tools/before-uninstall
	rm -f $(PREFIX)/bin/vmha $(PREFIX)/sbin/vmhad $(PREFIX)/sbin/vmha-replicad /lib/systemd/system/vmhad.service \
	  /lib/systemd/system/vmha-replicad@.service $(PREFIX)/share/man/man8/vmha.8 /etc/libvirt/hooks/qemu.d/vmha
	rm -rf $(PREFIX)/share/vmha

clean:
	$(SWIFT) package clean
